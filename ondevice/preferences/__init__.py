"""Response pairs and what people say of them: the ratings database, its backups and repair, what
is rated next, agreement between raters, the terminal's rating session, import and export.

May import: common, config, seam, data, hub, models.
"""

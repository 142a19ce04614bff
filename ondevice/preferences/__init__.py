"""Response pairs and what people say of them: the ratings database, its backups and repair, what
is rated next and by whom, what raters share and disagree on, agreement, the terminal's session, import
and export.

May import: common, config, seam, data, hub, models.
"""

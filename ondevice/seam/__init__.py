"""The seam: what shared code may ask of an array library, and the one place where a backend is
chosen. `ops` arrays and operations, `head`, `library`, `protocols` of backend and trainer,
`select`, `doctor`.

May import: common, config.
"""

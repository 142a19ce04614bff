"""Documents of other kinds than plain text as text: PDF, Word, HTML, EPUB, notebooks.

`store.extract` gives a file's text, which a process of its own has taken out of it (`child.py`, asked
by `asking.py`) within limits of time and memory, and keeps it; `survey.py` says which documents of
several files are read, and which are left out and why. One module for each kind: `pdf_pages.py`,
`word_document.py`, `web_page.py`, `epub_book.py`, `notebook.py`.
"""

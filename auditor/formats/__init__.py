"""One file per on-disk layout: a table and its docstring.  Adding a file here adds the layout."""

"""One file, one class, one rule.  Adding a file here adds the rule."""

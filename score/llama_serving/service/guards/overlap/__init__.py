"""Finds verbatim copies of the operator's own corpora in texts: runs of lines, by an index that is built offline."""

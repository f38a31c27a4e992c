"""A web page to draw digits on, and predictions over HTTP."""

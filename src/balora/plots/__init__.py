"""Figures drawn with matplotlib and the base of every HTML page; reports and experiments use both.

* `curves`, `dot_plot`, `tsne`: figures written as PNG and SVG files;
* `inline_svg`: figures for the inside of an HTML page;
* `html`: pages from templates;
* `style`: colours, axes and files.
"""

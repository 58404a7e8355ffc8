"""Sphinx's configuration of the documentation: `make docs` writes build/docs."""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util.inspect import stringify_signature

import normreg

project = "normreg"
author = copyright = "The normreg authors"
release = version = normreg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nitpicky = False  # torch's classes have their pages elsewhere, which offline nobody looks up

html_theme = "furo"
html_title = f"normreg {release}"
html_show_sphinx = False
pygments_dark_style = "monokai"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]

html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3  # links to headings, as on a forge
copybutton_exclude = ".linenos, .gp, .go"

highlight_language = "text"  # blocks that name no language are what programs print
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_param = False  # names that share a text stay together
autodoc_member_order = "bysource"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True


def told(annotation):
    """What `Tensor | Any` stands for, which type checkers take as either: with a second result, a pair."""
    return annotation and re.sub(r"(\S*Tensor) \| \S*Any\b", r"\1 | tuple[\1, \1]", annotation)


def tell_pairs(app, what, name, obj, options, signature, returned):
    return signature, told(returned)


def call_of(layer):
    """The signature of a layer's forward, as one calls it."""
    signature = inspect.signature(layer.forward, eval_str=True)
    signature = signature.replace(parameters=[*signature.parameters.values()][1:])
    return told(re.sub(r"~[\w.]*\.", "", stringify_signature(signature, unqualified_typehints=True)))


def complete_layer(app, what, name, obj, options, lines):
    """Adds to a layer's docstring that of the class that its siblings share, and how it is called."""
    if what != "class" or not issubclass(obj, torch.nn.Module):
        return
    for base in obj.__mro__[1:] if "Args:" not in obj.__doc__ else ():
        text = inspect.cleandoc(base.__doc__ or "")
        if base.__module__.startswith("normreg") and base.__name__[0] == "_" and "Args:" in text:
            of_images = re.sub(r"[13]d$", "2d", obj.__name__)  # which has it in full
            said = text if of_images == obj.__name__ else f"All else is as of `{of_images}`."
            lines += ["", *said.splitlines()]
    lines += ["", f"Call: ``layer{call_of(obj)}``", ""]


SIGNS = re.compile(r"(``.*?``|`.*?`)|(?<!\\)([*|])")


def escape_signs(app, what, name, obj, options, lines):
    """Escapes stars and bars of formulas, (N, *) and |x|, which reStructuredText reads as marks.

    What stands in backticks or in a block of code stays as it is.
    """
    code = None  # the indentation of the line that a block of code is below
    for at, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if code is not None and line.strip() and indentation <= code:
            code = None
        if code is None:
            lines[at] = SIGNS.sub(lambda found: found[1] or "\\" + found[2], line)
            code = indentation if line.endswith("::") else None
            if line.strip() == "Equivalent::":
                lines[at] = line.replace("::", f":\n\n{' ' * indentation}.. code-block:: python")
    lines[:] = "\n".join(lines).split("\n")


def name_torchs_base(app, name, obj, options, bases):
    """Names as the base of a class that of torch.nn alone, and not those that our classes share."""
    of_torch = [
        base for base in obj.__mro__ if base.__module__.startswith("torch.nn") and base.__name__[0] != "_"
    ]
    bases[:] = [f":py:class:`torch.nn.{base.__name__}`" for base in of_torch[:1]]


def as_mathml(display):
    """Writes formulas as MathML, which browsers draw by themselves: no script of another site is loaded."""

    def visit(writer, node):
        drawn = convert(node.astext(), display=display)
        # words in one piece, for voices too, and hats above their letters
        drawn = re.sub(
            r'(?:<mi mathvariant="normal">(?:.|&#x[0-9A-F]+;)</mi>){2,}',
            lambda word: f"<mi>{re.sub('<[^>]*>', '', word[0])}</mi>",
            drawn,
        )
        writer.body.append(drawn.replace("<mo>&#x0005E;</mo>", '<mo stretchy="false">&#x002C6;</mo>'))
        raise SkipNode

    return visit, None


def setup(app):
    app.connect("autodoc-process-docstring", complete_layer, priority=100)
    app.connect("autodoc-process-docstring", escape_signs, priority=200)  # before napoleon reads the sections
    app.connect("autodoc-process-signature", tell_pairs)
    app.connect("autodoc-process-bases", name_torchs_base)
    app.add_html_math_renderer("mathml", as_mathml("inline"), as_mathml("block"))

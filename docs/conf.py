"""How the site is built: ``make docs`` runs Sphinx on the Markdown pages of the repository.

The source directory is the root of the repository, so that a relative link leads to the same page here and in the
repository. Nothing is fetched, neither by the build nor by the pages.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "service"), str(ROOT / "telemetry")]

project = "litestar-agentcore"
author = "the litestar-agentcore authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/**",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "grafana/*",
    "helm/agentcore/*",
]
exclude_patterns = [".*", "build", "dist", "requirements", "service", "telemetry", "tests"]
source_suffix = {".md": "markdown"}
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!litestar_agentcore).*"),  # names of other projects, whose sites are not asked
    (r"py:class", r"litestar_agentcore\.(authoring|ag_ui)\.(Any\w+|[PR])"),  # type variables
    # internal classes in signatures
    (r"py:class", r"litestar_agentcore\.(openapi|config_bundle|protocols|runtime\.agent)\..*"),
]


myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = project
html_baseurl = ""
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_additional_pages = {"index": "front.html"}  # what a web server shows first
templates_path = ["_templates"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

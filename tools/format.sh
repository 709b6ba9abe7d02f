#!/usr/bin/env bash
# make format: rewrites C++ and Python sources in the project's style.
source "$(dirname "$0")/common.sh"

ensure_venv lint
"$PYTHON" tools/project_files.py cpp | xargs clang-format -i
"$PYTHON" tools/project_files.py python | xargs ruff check --quiet --fix-only
"$PYTHON" tools/project_files.py python | xargs ruff format --quiet

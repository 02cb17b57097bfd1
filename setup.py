"""Build of the compiled modules.

SCRATCHWRITER_DEBUG=1         no optimisation, symbols, assertions
SCRATCHWRITER_STRICT=1        warnings of Cython and of the C compiler are errors
SCRATCHWRITER_SANITIZE=NAMES  what -fsanitize takes; see tests/sanitize
SCRATCHWRITER_COVERAGE=1      counts which lines run (gcov); see tests/coverage
"""

import os
import sys

import numpy as np
from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

DEBUG = os.environ.get("SCRATCHWRITER_DEBUG") == "1"
STRICT = os.environ.get("SCRATCHWRITER_STRICT") == "1"
SANITIZE = os.environ.get("SCRATCHWRITER_SANITIZE")
COVERAGE = os.environ.get("SCRATCHWRITER_COVERAGE") == "1"

Options.warning_errors = STRICT
compile_args: list[str] = []
link_args: list[str] = []
if sys.platform != "win32":
    compile_args += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3"]
    compile_args += ["-Wall", "-Werror"] if STRICT else []
if SANITIZE:
    link_args = [f"-fsanitize={SANITIZE}"]
    compile_args += [*link_args, "-fno-omit-frame-pointer", "-g", "-O1"]
if COVERAGE:
    link_args += ["--coverage"]
    compile_args += ["--coverage", "-fprofile-update=atomic", "-O0"]


def extension(name: str) -> Extension:
    return Extension(
        f"scratchwriter.{name}",
        [f"src/scratchwriter/{name.replace('.', '/')}.pyx"],
        include_dirs=[
            "src/scratchwriter/_native",
            "src/scratchwriter/_region",
            "src/scratchwriter/include",
            np.get_include(),
        ],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        depends=[
            "src/scratchwriter/_native/copy.h",
            "src/scratchwriter/_region/platform.h",
            "src/scratchwriter/include/scratchwriter.h",
        ],
    )


names = [
    "_core",
    "_region.descriptor",
    "_native.append_timer",
    "_native.appender",
    "_native.c_api",
    "_native.call_guard",
    "_native.convert",
    "_native.frame_spec",
    "_native.logs",
    "_native.watch",
]
if sys.platform == "linux":
    names += ["_native.ahead", "_region.file_view", "_region.mapped", "_region.staging"]

setup(
    ext_modules=cythonize(
        [extension(name) for name in names],
        compiler_directives={
            "language_level": "3",
            "auto_pickle": False,
            "autotestdict": False,
            "binding": False,
            "freethreading_compatible": True,
        },
    )
)

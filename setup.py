"""What `pyproject.toml` cannot say: a wheel holds the data path compiled as well, where that can be done.

mypyc makes C of the modules in COMPILED, which stay what they are: typed Python, in the wheel beside what was made of
them. An exchange takes a third of the time then (`benchmarks/RESULTS.md`). It needs a C compiler and Python's headers;
without them the wheel holds the sources alone. An editable install runs the sources, so that an edit is what runs.

    AIGW_COMPILE=0 pip install .    the sources alone
    AIGW_COMPILE=1 pip install .    compiled, or the installation fails

What is compiled holds types to their word: an annotation that is not true is a TypeError. So the tests run by both.
"""

import os
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# What runs for every exchange, and the classes whose attributes it reads: those of a class that is not compiled cost as
# much as ever. What runs less often is left out, for the 1.5 s that a module takes to compile.
COMPILED = """
    admit counters errors forward gateway ledger meters records route shared tokens
    config/limits config/snapshot config/upstreams
    policies/allowance policies/keys policies/limits
    providers/first providers/tap providers/usage
    proxy/admission proxy/choosing proxy/client proxy/connection proxy/ending proxy/exchange proxy/pool proxy/taps
    proxy/upstream
    wire/chunked wire/fields wire/framing wire/head wire/jsonspan wire/sse
"""


def can_compile() -> bool:
    """Whether there are a compiler and Python's headers."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n")
        try:
            compiler.compile([str(source)], folder, include_dirs=[sysconfig.get_path("include")])
        except CompileError:
            return False
    return True


def extensions() -> list[Extension]:
    asked = os.environ.get("AIGW_COMPILE", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"AIGW_COMPILE={asked}: must be 0 (the sources alone) or 1 (compiled, or fail)")
    if asked == "0" or not {"bdist_wheel", "build_ext"} & set(sys.argv):
        return []
    if not asked and not can_compile():
        print("no C compiler or no Python.h: the data path is not compiled, and takes about twice the CPU time")
        return []
    from mypyc.build import mypycify

    paths = [f"aigw/{module}.py" for module in COMPILED.split()]
    # The project's own settings are for checking, which needs the packages it runs with: here they are not there.
    options = ["--config-file=", "--ignore-missing-imports", "--no-color-output"]
    return mypycify([*options, *paths], opt_level="2", debug_level="0", multi_file=True)


class ParallelBuild(build_ext):
    """Compiles a file on each core."""

    def build_extension(self, ext: Extension) -> None:
        compile: Callable[..., list[str]] = self.compiler.compile

        def compile_all(sources: list[str], **settings: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile([source], **settings), sources)
                return [file for files in made for file in files]

        self.compiler.compile = compile_all
        super().build_extension(ext)
        self.compiler.compile = compile


setup(ext_modules=extensions(), cmdclass={"build_ext": ParallelBuild})

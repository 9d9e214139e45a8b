"""Runs Xen's own stream tools on many files in one process: a line is an order, a line the answer.

verify FORMAT FILE
convert WIDTH GUEST FORMAT IN OUT
"""

import importlib.machinery
import importlib.util
import os
import sys


def load(name):
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), os.path.join(sys.argv[1], name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    module.err = lambda message: None
    return module


verifier = load("verify-stream-v2")
converter = load("convert-legacy-stream")


def verify(format, path):
    with open(path, "rb", 0) as verifier.fin:
        return verifier.read_stream(format)


def convert(width, guest, format, source, target):
    converter.twidth, converter.pv = int(width), guest == "pv"
    with open(source, "rb") as converter.fin, open(target, "wb") as converter.fout:
        return converter.read_legacy_stream(converter.VM(format))


for line in sys.stdin:
    name, *words = line.rstrip("\n").split("\t")
    try:
        code = {"verify": verify, "convert": convert}[name](*words)
    except Exception as error:
        code = type(error).__name__
    print("ok" if code == 0 else f"refused {code}", flush=True)

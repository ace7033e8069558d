"""Faults injected for real into runs, whose tables are compared with those of an undisturbed run.

``python -m tests.chaos --rounds N`` injects each fault N times and prints a table. Linux only. The
product holds no hooks for this: ``points.py`` patches it in the process that is to be disturbed.
"""

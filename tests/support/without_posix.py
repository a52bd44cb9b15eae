"""Take the names of POSIX out of Python, as on Windows; import this module before `outbox`.

Libraries that have code of their own for Windows are imported first, because they choose it by the platform.
"""

from __future__ import annotations

import asyncio
import multiprocessing.util
import os
import select
import signal
import subprocess
import sys

import django.core.management
import django.test.utils
import dramatiq.brokers.stub
import psycopg

LOADED_BEFORE = (asyncio, multiprocessing.util, subprocess, django, dramatiq, psycopg)

MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty")
OF_OS = (
    *("fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "mkfifo", "pread"),
    *("pwrite", "register_at_fork", "setsid", "uname", "wait", "wait4"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"),
    *(name for name in vars(os) if name.startswith("EX_")),
)
OF_SELECT = ("epoll", "poll")
OF_SIGNAL = (
    *("alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait", "siginterrupt"),
    *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
)


def remove() -> None:
    """Remove the names."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment] - an import of the module then fails
    for module, names in ((os, OF_OS), (select, OF_SELECT), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


remove()

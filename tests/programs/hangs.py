"""Starts a process that sleeps and prints its number; then does not end, if so told, and ignores signals."""

import signal
import subprocess
import sys
import time

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("grandchild", child.pid, flush=True)
if "deaf" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if "stays" in sys.argv:
    print("hangs", flush=True)
    time.sleep(600)

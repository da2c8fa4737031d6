"""For all tests."""

import signal

# A shell's background job ignores SIGINT, and its children inherit that: Ctrl-C is tested here, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

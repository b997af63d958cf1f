"""Carry a running program to another host: checkpoint, rewrite, transfer, restore, or roll back.

Knows processes, CRIU and images; knows nothing of P4 or Mininet. What it needs of the network it asks of a
`steering.Steering`, which the caller brings:

    with ProcessRuntime() as runtime:                                        # process.py; owns the programs
        app = runtime.launch("echo", h2, ["python3", "tcp_echo.py", "server"], Path("/tmp/echo.log"))
        migrator = Migrator(steering, runtime)                               # migrator.py
        report = migrator.migrate(app, h3, on_event=print)                   # never raises for a failed move
        assert report.outcome is Outcome.COMPLETED and app.host is h3

Read transaction.py first (the steps and their undo), then passage.py and criu.py (how CRIU is made to wait at
the right places), keeper.py (who owns the programs), images.py and inet.py (addresses), preflight.py (refusals).
"""

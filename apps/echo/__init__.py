"""The parts of apps/tcp_echo.py. Standard library only: they run in hosts under any python3 from 3.10 on."""

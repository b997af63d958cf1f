"""List the tables of a P4Runtime switch, insert a row and read it back, with finsy.

python docs/examples/tables.py 127.0.0.1:9559 1 p4info.txt program.json arp address=10.0.1.254 drop
"""

import asyncio
import sys
from pathlib import Path

import finsy as fy


async def main(address: str, device_id: str, p4info: str, program: str, table: str, *words: str) -> None:
    """Set the pipeline, then list, insert, read back."""
    *match, action = words
    options = fy.SwitchOptions(p4info=Path(p4info), p4blob=Path(program), device_id=int(device_id))
    async with fy.Switch("switch", address, options) as switch:
        print(*(info.alias for info in switch.p4info.tables))
        key = fy.Match(**dict(word.split("=") for word in match))
        await switch.insert([fy.P4TableEntry(table, match=key, action=fy.Action(action))])
        async for entry in switch.read([fy.P4TableEntry(table)]):
            print(entry)


asyncio.run(main(*sys.argv[1:]))

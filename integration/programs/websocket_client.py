"""Talks to websocket_server.py and closes cleanly. Usage: websocket_client.py URL. Exit code 0 only if all is as expected."""

import asyncio
import sys

from websockets.asyncio.client import connect


async def main():
    async with connect(sys.argv[1], compression=None, ping_interval=None, proxy=None) as connection:
        # The server speaks first, without being asked.
        assert await connection.recv() == "greeting"
        for message in ["text", bytes(100_000), ""]:
            await connection.send(message)
            assert await connection.recv() == message
    assert connection.close_code == 1000, connection.close_code


asyncio.run(asyncio.wait_for(main(), 20))

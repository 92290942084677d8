"""A WebSocket server on the library websockets: greets, then echoes each message.

Usage: websocket_server.py PORT. Knows nothing of Picket.
"""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(connection):
    await connection.send("greeting")
    async for message in connection:
        await connection.send(message)


async def main():
    # No compression and no pings: the number of bytes on the wire is known.
    async with serve(echo, None, int(sys.argv[1]), compression=None, ping_interval=None) as server:
        await server.serve_forever()


asyncio.run(main())

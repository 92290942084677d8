"""A gRPC server on grpcio: one call of each kind that ends well, and calls that fail before and after a message.

Usage: grpc_server.py PORT. Knows nothing of Picket; messages are plain bytes.
"""

import sys
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-served", "unary"),))
    return b"unary:" + request


def chat(requests, context):
    """Answers each message when it has come, so that neither side can run ahead."""
    count = 0
    for request in requests:
        count += 1
        yield b"chat:" + request
    context.set_trailing_metadata((("x-served", str(count)),))


def refuse(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused before any message")


def fail(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "failed after a message")


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Fail": grpc.unary_stream_rpc_method_handler(fail),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("picket.test.Peer", METHODS),))
server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
server.wait_for_termination()

"""An OTLP trace receiver over HTTP and gRPC, with the official protobuf messages.

Prints its ports, then a line of JSON for each export: the response, the headers, and the spans of accepted exports. The
arguments are the responses to the first exports: an HTTP status ("503", or "429:2" with Retry-After), the name of a gRPC
status ("UNAVAILABLE"), "hang" for no response, or "part" for a partial success with one rejected span. Later exports are
accepted. "--port N" sets the HTTP port.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

lock = threading.Lock()
responses = sys.argv[1:]
port = int(responses.pop(1)) if responses[:1] == ["--port"] else 0
if port:
    responses.pop(0)


def emit(**fields):
    with lock:
        print(json.dumps(fields, ensure_ascii=False), flush=True)


def next_response():
    with lock:
        return responses.pop(0) if responses else "ok"


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    keys = [pair.key for pair in pairs]
    assert len(set(keys)) == len(keys), keys
    return {pair.key: value(pair.value) for pair in pairs}


def spans(request):
    found = []
    for resource_spans in request.resource_spans:
        resource = attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                found.append({
                    "resource": resource,
                    "scope": [scope_spans.scope.name, scope_spans.scope.version],
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": trace_pb2.Span.SpanKind.Name(span.kind),
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "flags": span.flags,
                    "status": trace_pb2.Status.StatusCode.Name(span.status.code),
                    "message": span.status.message,
                    "attributes": attributes(span.attributes),
                    "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                })
    return found


def accept(request, response_kind, by, headers):
    """Accepts an export and prints it."""
    # Fields that are unknown to these messages would be lost in the round trip.
    assert trace_service_pb2.ExportTraceServiceRequest.FromString(request.SerializeToString()) == request
    emit(answer=response_kind, by=by, headers=headers, spans=spans(request))
    response = trace_service_pb2.ExportTraceServiceResponse()
    if response_kind == "part":
        response.partial_success.rejected_spans = 1
        response.partial_success.error_message = "no"
    return response


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        response_kind = next_response()
        headers = {name.lower(): text for name, text in self.headers.items()}
        headers[":path"] = self.path
        if response_kind in ("ok", "part"):
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            status, after, body = 200, "", accept(request, response_kind, "http", headers).SerializeToString()
        else:
            emit(answer=response_kind, by="http")
            if response_kind == "hang":
                threading.Event().wait()
            (status, _, after), body = response_kind.partition(":"), b""
        self.send_response(int(status))
        if after:
            self.send_header("Retry-After", after)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Service(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        response_kind = next_response()
        if response_kind in ("ok", "part"):
            return accept(request, response_kind, "grpc", dict(context.invocation_metadata()))
        emit(answer=response_kind, by="grpc")
        context.abort(grpc.StatusCode[response_kind], "as configured")


http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
http.daemon_threads = True
server = grpc.server(ThreadPoolExecutor(4))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
print(f'ready http="{http.server_address[1]}" grpc="{server.add_insecure_port("127.0.0.1:0")}"', flush=True)
server.start()
http.serve_forever()

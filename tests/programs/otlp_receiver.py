"""A receiver of OpenTelemetry's traces, over HTTP and over gRPC, with the real messages.

Prints its ports, and then a line of JSON for each delivery: the answer, the headers, and the spans of those that it takes.
The arguments are the answers to the first deliveries, one each: a status of HTTP ("503", or "429:2" with a Retry-After), one
of gRPC by its name ("UNAVAILABLE"), "hang" for none at all, or "part" for one span that is not wanted. All others are fine.
"--port N" takes a port for HTTP.
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
answers = sys.argv[1:]
port = int(answers.pop(1)) if answers[:1] == ["--port"] else 0
if port:
    answers.pop(0)


def say(**what):
    with lock:
        print(json.dumps(what, ensure_ascii=False), flush=True)


def next_answer():
    with lock:
        return answers.pop(0) if answers else "ok"


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(of):
    keys = [one.key for one in of]
    assert len(set(keys)) == len(keys), keys
    return {one.key: value(one.value) for one in of}


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
                })
    return found


def fine(request, answer, by, headers):
    """Takes a delivery, and says so."""
    # What is unknown to this version of the messages is lost on the way back.
    assert trace_service_pb2.ExportTraceServiceRequest.FromString(request.SerializeToString()) == request
    say(answer=answer, by=by, headers=headers, spans=spans(request))
    response = trace_service_pb2.ExportTraceServiceResponse()
    if answer == "part":
        response.partial_success.rejected_spans = 1
        response.partial_success.error_message = "no"
    return response


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = next_answer()
        headers = {name.lower(): text for name, text in self.headers.items()}
        headers[":path"] = self.path
        if answer in ("ok", "part"):
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            status, after, body = 200, "", fine(request, answer, "http", headers).SerializeToString()
        else:
            say(answer=answer, by="http")
            if answer == "hang":
                threading.Event().wait()
            (status, _, after), body = answer.partition(":"), b""
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
        answer = next_answer()
        if answer in ("ok", "part"):
            return fine(request, answer, "grpc", dict(context.invocation_metadata()))
        say(answer=answer, by="grpc")
        context.abort(grpc.StatusCode[answer], "told to")


http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
http.daemon_threads = True
server = grpc.server(ThreadPoolExecutor(4))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
print(f'ready http="{http.server_address[1]}" grpc="{server.add_insecure_port("127.0.0.1:0")}"', flush=True)
server.start()
http.serve_forever()

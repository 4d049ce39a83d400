"""`python openvino_server.py MODEL PORT THREADS STREAMS TOKENS`: OpenVINO GenAI's continuous batching behind
`/v1/completions`.

As little as a server can be, so that the pipeline is what is measured: one thread steps it, one connection per request,
one event per token. Its prefix cache is on; other settings are its own. Standard library beside the package.
"""

import json
import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = 32  # tokens of one block of the CPU's KV cache
_ENDED = None


class Engine:
    """The pipeline, stepped in a thread of its own; every request has a queue in which its tokens come."""

    def __init__(self, model: str, threads: int, streams: int, tokens: int) -> None:
        import openvino_genai

        self._lib = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = streams
        scheduler.num_kv_blocks = tokens // BLOCK
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipe = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._tokenizer = self._pipe.get_tokenizer()
        self._arrived: queue.Queue[tuple[Any, Any, queue.Queue[Any]]] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, body: dict[str, Any]) -> tuple[int, "queue.Queue[Any]"]:
        """Tokens of the prompt, and a queue of (text, tokens) that ends with None."""
        config = self._lib.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = body["max_tokens"], True, False
        ids = self._tokenizer.encode(body["prompt"], add_special_tokens=False).input_ids
        found: queue.Queue[Any] = queue.Queue()
        self._arrived.put((ids, config, found))
        return ids.shape[1], found

    def _run(self) -> None:
        live: list[tuple[Any, queue.Queue[Any]]] = []
        number = 0
        while True:
            while not live or not self._arrived.empty():
                ids, config, found = self._arrived.get()
                live.append((self._pipe.add_request(number, ids, config), found))
                number += 1
            self._pipe.step()
            for handle, found in live:
                while handle.can_read():
                    ids = [token for output in handle.read().values() for token in output.generated_ids]
                    found.put((self._tokenizer.decode(ids), len(ids)))
            running = self._lib.GenerationStatus.RUNNING
            for handle, found in live:
                if handle.get_status() != running:
                    found.put(_ENDED)
            live = [one for one in live if one[0].get_status() == running]


class Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    engine: Engine
    protocol_version = "HTTP/1.0"  # the end of the connection is the end of the body
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, found = self.engine.ask(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        total = 0
        while (one := found.get()) is not _ENDED:
            text, count = one
            total += count
            self._say({"choices": [{"index": 0, "text": text}]})
        self._say({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": total}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *args: Any) -> None:
        """No line per request."""


class Server(ThreadingHTTPServer):
    """As many connections at once as come."""

    daemon_threads = True
    request_queue_size = 512


def main(model: str, port: str, threads: str, streams: str, tokens: str) -> None:
    """Load, then serve until a signal ends this process."""
    Handler.engine = Engine(model, int(threads), int(streams), int(tokens))
    Server(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

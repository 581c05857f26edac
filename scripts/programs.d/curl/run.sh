set -e
python3 -u -c '
import http.server, os, functools
class H(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_POST(self):
        d = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201); self.end_headers(); self.wfile.write(d[::-1])
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
open("tmp/port.new", "w").write(str(s.server_port)); os.rename("tmp/port.new", "tmp/port")
s.serve_forever()
' &
server=$!
for i in $(seq 600); do test -e tmp/port && break; sleep 0.1; done
url=http://127.0.0.1:$(cat tmp/port)
curl -sS -o got $url/text; cmp got text && echo same
curl -sS -I $url/text | grep -i -E '^(HTTP|content-length)' | tr -d '\r'
curl -sS -w '%{http_code}\n' -o /dev/null $url/missing
curl -sS -d 'posted data' $url/; echo
curl -sS --data-binary @text $url/ | rev 2> /dev/null | tail -n 1 | wc -c
for i in 1 2 3 4; do curl -sS -o many$i $url/text & pids="$pids $!"; done
for p in $pids; do wait $p; echo "curl $?"; done
cmp many1 many4 && echo same
curl -sS --parallel --parallel-max 3 -o p1 $url/text -o p2 $url/run.sh -o p3 $url/text 2> /dev/null; cmp p1 p3 && cmp p2 run.sh && echo parallel
curl -sS --max-time 20 http://127.0.0.1:1/ 2> /dev/null || echo "refused $?"
kill $server; wait $server || echo "server $?"

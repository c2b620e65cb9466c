"""Running an image with what `docker run --read-only --cap-drop ALL --network none` would leave it."""

from __future__ import annotations

import shlex
import subprocess
from typing import Final

from scripts.image.build import Image

KEY: Final = "key-of-the-trial"
SCRIPT: Final = """\
set -euo pipefail
mount --make-rprivate /
mount --bind {root} {root}; cd {root}
mount -t proc proc proc
mount -t tmpfs tmpfs tmp
mount --rbind /dev dev
for volume in {volumes}; do
  mount -t tmpfs -o "uid=$(stat -c %u ".$volume"),gid=$(stat -c %g ".$volume"),mode=755" tmpfs ".$volume"
done
mount -o remount,bind,ro .
ip link set lo up
inside=(env -i {environment} chroot . setpriv --reuid={user} --regid={group} --clear-groups
  --no-new-privs --bounding-set=-all --inh-caps=-all)

"${{inside[@]}}" {command} & server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  if "${{inside[@]}}" {check} 2>/dev/null; then healthy=passes; break; fi
  kill -0 $server; sleep 0.2
done
echo "HEALTHCHECK ${{healthy:?fails}}"
"${{inside[@]}}" python3 -c {picture}
rights=$(awk '/^(Uid|CapEff|NoNewPrivs):/ {{ print $1 $2 }}' proc/$server/status | xargs)
echo "$rights"
[ "$rights" = "Uid:{user} CapEff:0000000000000000 NoNewPrivs:1" ]
for file in /written /opt/written /etc/written; do
  if "${{inside[@]}}" touch $file 2>/dev/null; then echo "it can write $file" >&2; exit 1; fi
done
du -sh .{state}
kill -TERM $server
wait $server
echo "ended in order"
"""
PICTURE: Final = f"""\
import base64, json, urllib.request
address = "http://127.0.0.1:8080"
def ask(path, body=None):
    headers = {{"Authorization": "Bearer {KEY}", "Content-Type": "application/json"}}
    request = urllib.request.Request(address + path, body and json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=120))
made = ask("/v1/images/generations", {{"prompt": "a red apple", "seed": 5, "response_format": "b64_json"}})
picture = base64.b64decode(made["data"][0]["b64_json"])
assert picture.startswith(b"\\x89PNG"), picture[:20]
health = ask("/health")
print(len(picture), "bytes of PNG; engine:", health["backend"], health["kernels"], health["build"])
"""


def run(image: Image) -> None:
    """Its command, its health check, a picture, and an end in order. Raises CalledProcessError."""
    environment = {**image.environment, "GGUF_IMAGEGEN_API_KEY": KEY}
    user, group = image.user.split(":")
    script = SCRIPT.format(
        root=shlex.quote(str(image.root)),
        volumes=shlex.join(image.volumes),
        environment=shlex.join(f"{name}={value}" for name, value in environment.items()),
        user=user,
        group=group,
        command=shlex.join([*image.entry, *image.command]),
        check=shlex.join(image.check),
        picture=shlex.quote(PICTURE),
        state=shlex.quote(image.environment["GGUF_IMAGEGEN_STATE_DIR"]),
    )
    subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "bash", "-c", script], check=True)

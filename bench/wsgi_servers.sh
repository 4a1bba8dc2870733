#!/bin/sh
# granian against gunicorn on a trivial WSGI callable, side by side (docs/decisions/0002).
# Needs wrk, and both servers in a throw-away virtual environment: bench/wsgi_servers.sh VENV
set -eu
venv=${1:?usage: bench/wsgi_servers.sh VENV_WITH_GRANIAN_AND_GUNICORN}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"

measure() { # NAME PORT; the server runs as the last background job
    sleep 2
    for connections in 8 32; do
        rate=$(wrk -t1 -c$connections -d4 "http://127.0.0.1:$2/" | awk '/Requests\/sec/ {print $2}')
        echo "$1 $connections connections: $rate req/s"
    done
    kill $!
    wait $! 2>/dev/null || true
}

for round in 1 2 3; do
    echo "round $round"
    "$venv/bin/granian" --interface wsgi --port 9100 --workers 2 --blocking-threads 16 --no-log \
        trivial_wsgi:app &
    measure granian 9100
    "$venv/bin/gunicorn" -k gthread --threads 16 -w 2 -b 127.0.0.1:9101 --log-level warning \
        trivial_wsgi:app &
    measure gunicorn 9101
done

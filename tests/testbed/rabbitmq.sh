#!/bin/bash
# rabbitmq.sh: a RabbitMQ node of one's own on loopback, in a directory of its own; as many side by side as you like.
#
#   rabbitmq.sh run DIR [tls]        runs one until its standard input ends, then removes DIR; prints what tools need
#   rabbitmq.sh start DIR [tls]      the same, and comes back; rabbitmq.sh stop DIR ends it
#   rabbitmq.sh kill DIR             ends it with kill -9: as a machine that loses power
#   rabbitmq.sh restart DIR          stops what runs, and starts it again with its data, at its ports
#   rabbitmq.sh ctl DIR ARG...       rabbitmqctl there
#   rabbitmq.sh env DIR              prints what tools need again
#
# OCOPEA_LISTEN=ADDRESS: at another address of this machine, when DIR is made (pods reach 172.31.0.254).
. "$(dirname "$0")/lib.sh"

# Debian's programs in sbin become the user "rabbitmq"; these run as whoever calls.
BIN=/usr/lib/rabbitmq/bin
VHOST=ocopea
LISTEN=${OCOPEA_LISTEN:-127.0.0.1}

free_ports() { python3 -c 'import socket, sys
open_ones = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in open_ones: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in open_ones))' "$1"; }

# certificate: a CA of its own, and what it says of the server
certificate() {
  [ -s "$DIR/ca.pem" ] && return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj "/CN=RabbitMQ of a test" \
    -addext basicConstraints=critical,CA:TRUE -keyout "$DIR/ca.key" -out "$DIR/ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout "$DIR/key.pem" -out "$DIR/csr.pem" 2>/dev/null
  openssl x509 -req -in "$DIR/csr.pem" -CA "$DIR/ca.pem" -CAkey "$DIR/ca.key" -CAcreateserial -days 3 -out "$DIR/cert.pem" \
    -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:%s\nbasicConstraints=CA:FALSE\n' "$LISTEN") 2>/dev/null
}

# configure [tls]: ports, passwords and files, once for each directory
configure() {
  [ -x "$BIN/rabbitmq-server" ] || die "there is no RabbitMQ" "tests/testbed/prereqs.sh tests"
  mkdir -p "$DIR/mnesia" "$DIR/log"
  local amqp http distribution names password scheme=http amqps=amqp ca=
  read -r amqp http distribution names <<<"$(free_ports 4)"
  password=$(openssl rand -hex 16)
  {
    printf 'loopback_users = none\ndefault_vhost = %s\ndefault_user = admin\ndefault_pass = %s\n' "$VHOST" "$password"
    printf 'default_user_tags.administrator = true\n'
    printf 'default_permissions.configure = .*\ndefault_permissions.read = .*\ndefault_permissions.write = .*\n'
    # What the envelope allows and a bit: the broker keeps what is larger out.
    printf 'max_message_size = 9437184\n'
    printf 'vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\ncollect_statistics_interval = 1000\n'
    printf 'log.console = false\nlog.file.level = info\n'
    if [ "${1:-}" = tls ]; then
      scheme=https; amqps=amqps; ca=$DIR/ca.pem; certificate
      printf 'listeners.tcp = none\nlisteners.ssl.1 = %s:%s\n' "$LISTEN" "$amqp"
      printf 'ssl_options.cacertfile = %s\nssl_options.certfile = %s\nssl_options.keyfile = %s\n' "$DIR/ca.pem" "$DIR/cert.pem" "$DIR/key.pem"
      printf 'ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n'
      printf 'management.ssl.ip = %s\nmanagement.ssl.port = %s\n' "$LISTEN" "$http"
      printf 'management.ssl.cacertfile = %s\nmanagement.ssl.certfile = %s\nmanagement.ssl.keyfile = %s\n' "$DIR/ca.pem" "$DIR/cert.pem" "$DIR/key.pem"
    else
      printf 'listeners.tcp.1 = %s:%s\nmanagement.tcp.ip = %s\nmanagement.tcp.port = %s\n' "$LISTEN" "$amqp" "$LISTEN" "$http"
    fi
  } >"$DIR/rabbitmq.conf"
  echo '[rabbitmq_management].' >"$DIR/enabled_plugins"
  # The machine's own settings are for the machine's own node.
  : >"$DIR/environment"
  openssl rand -hex 20 >"$DIR/.erlang.cookie"; chmod 400 "$DIR/.erlang.cookie"
  printf 'DISTRIBUTION=%s\nNAMES=%s\n' "$distribution" "$names" >"$DIR/ports"
  printf 'URL=%s\nMANAGEMENT=%s\nVHOST=%s\nUSER=admin\nPASSWORD=%s\nCA=%s\n' \
    "$amqps://$LISTEN:$amqp/$VHOST" "$scheme://$LISTEN:$http" "$VHOST" "$password" "$ca" >"$DIR/env"
}

# as_node COMMAND...: with the variables that make RabbitMQ's programs speak of the node in DIR
as_node() {
  # shellcheck disable=SC1091 # written by configure
  . "$DIR/ports"
  env -i PATH="$PATH" HOME="$DIR" LANG=C.UTF-8 ERL_EPMD_PORT="$NAMES" ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_NODENAME=ocopea@localhost RABBITMQ_DIST_PORT="$DISTRIBUTION" RABBITMQ_CONF_ENV_FILE="$DIR/environment" \
    RABBITMQ_CONFIG_FILE="$DIR/rabbitmq" RABBITMQ_ADVANCED_CONFIG_FILE="$DIR/none" RABBITMQ_ENABLED_PLUGINS_FILE="$DIR/enabled_plugins" \
    RABBITMQ_MNESIA_BASE="$DIR/mnesia" RABBITMQ_LOG_BASE="$DIR/log" RABBITMQ_PID_FILE="$DIR/mnesia/pid" RABBITMQ_ALLOW_INPUT=1 \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-noinput +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}' \
    "$@"
}

# processes: what runs of the node in DIR, whoever started it
processes() { grep -lzxF -- "RABBITMQ_LOG_BASE=$DIR/log" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }

# up: starts what is configured; it runs when this comes back
up() {
  # shellcheck disable=SC1091
  . "$DIR/env"
  # shellcheck disable=SC1091
  . "$DIR/ports"
  # Names are looked up at a port of this node's own; it ends with the node.
  as_node setsid epmd -port "$NAMES" -address 127.0.0.1 >/dev/null 2>&1 </dev/null &
  as_node setsid "$BIN/rabbitmq-server" >"$DIR/log/console" 2>&1 </dev/null &
  local server=$! host=${URL#*://}; host=${host%/*}
  for _ in $(seq 1200); do
    kill -0 $server 2>/dev/null || return 1
    if curl -skf -o /dev/null --noproxy '*' -u "$USER:$PASSWORD" "$MANAGEMENT/api/overview" &&
      (exec 3<>"/dev/tcp/${host%:*}/${host#*:}") 2>/dev/null; then return 0; fi
    sleep 0.05
  done
  return 1
}

# down SIGNAL: ends what runs in DIR, and waits until it is gone
down() {
  local pids pid; pids=$(processes)
  # shellcheck disable=SC2086 # one word each
  [ -z "$pids" ] || kill -s "$1" $pids 2>/dev/null || true
  # One that doesn't end on being asked is ended.
  for _ in $(seq 200); do
    [ -n "$(processes)" ] || return 0
    sleep 0.05
  done
  for pid in $(processes); do kill -9 "$pid" 2>/dev/null || true; done
}

launch() {
  # A port that was free may be taken by the time the node wants it.
  local try
  for try in 1 2 3; do
    configure "$@"
    up && return 0
    down KILL; rm -rf "$DIR/mnesia"
  done
  die "RabbitMQ doesn't start: $(tail -3 "$DIR/log/console" 2>/dev/null)" "see $DIR/log"
}

command=${1:-}; [ $# -gt 0 ] && shift
DIR=$(realpath -m "${1:?which directory?}"); shift
case $command in
run)
  trap 'down KILL; rm -rf "$DIR"' EXIT
  launch "$@"
  cat "$DIR/env"; echo READY
  # Whoever started this holds the other end.
  cat >/dev/null;;
start) launch "$@"; cat "$DIR/env";;
stop) down TERM;;
kill) down KILL;;
restart) down TERM; up || die "RabbitMQ doesn't start again: $(tail -3 "$DIR/log/console")" "see $DIR/log";;
ctl) as_node "$BIN/rabbitmqctl" "$@";;
env) cat "$DIR/env";;
*) die "rabbitmq.sh: no command is called $command" "see the head of $0";;
esac

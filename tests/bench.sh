#!/bin/bash
# bench.sh [SECTION…]: measures against peers on this machine and writes the figures into docs/benchmarks.md, each
# section between its own marks. One function `section_NAME` per section; without arguments all of them.
#   ROUNDS=3 SEED=1 MEGABYTES=1000 GIGABYTES=8 SCALE=40 DATABASES=30 DOCUMENTS=100  how much is measured
#   IMAGES=100000 PAGES=200                     images of the catalog, pages of each kind
#   SITES=1000 IDLE=60 TASKS=300 HINTS=10000    sites of the fleet, seconds without work, tasks, messages
#   TREE=DIR                                    the repository's bench: copies of these files instead of made-up ones
#   AS=NAME                                     the repository's figures as a section of this name beside the first
#   BENCH_DIR=DIR                               where (its file system is what is measured; default: a new one in /tmp)
set -euo pipefail
TOP=$(cd "$(dirname "$0")/.." && pwd)
OUT=$TOP/docs/benchmarks.md
ROUNDS=${ROUNDS:-3} MEGABYTES=${MEGABYTES:-1000} SEED=${SEED:-1} GIGABYTES=${GIGABYTES:-8}
IMAGES=${IMAGES:-100000} PAGES=${PAGES:-200}
SITES=${SITES:-1000} IDLE=${IDLE:-60} TASKS=${TASKS:-300} HINTS=${HINTS:-10000}
SCALE=${SCALE:-40} DATABASES=${DATABASES:-30} DOCUMENTS=${DOCUMENTS:-100}
PLACE=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/ocopea-bench.XXXXXX")
trap 'rm -rf "$PLACE"' EXIT

say() { echo "bench: $*" >&2; }
die() { say "$*"; exit 1; }

# What a figure is worth without: when, of what, where.
stamp() {
    local dirty=
    [ -z "$(git -C "$TOP" status --porcelain --untracked-files=no)" ] || dirty=" and changes"
    local model cores memory load
    model=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)
    cores=$(nproc)
    memory=$(awk '/^MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)
    load=$(cut -d' ' -f1 /proc/loadavg)
    echo "$(date -u +%Y-%m-%d), commit $(git -C "$TOP" rev-parse --short HEAD)$dirty; $cores cores of $model, $memory GiB, $(df --output=fstype "$PLACE" | tail -1), Linux $(uname -r); load $load when it began."
}

# put NAME: replaces the section NAME by what comes on standard input; appends it where there is none.
put() {
    local name=$1 new
    new=$(mktemp)
    { echo "<!-- $name: written by tests/bench.sh -->"; cat; echo "<!-- $name: end -->"; } > "$new"
    [ -f "$OUT" ] || printf '# Benchmarks\n\nRatios against a peer in the same run on the same machine, medians of interleaved rounds; `make bench` measures again. The floors are what must hold on a machine that does nothing else.\n' > "$OUT"
    if grep -q "^<!-- $name: written" "$OUT"; then
        awk -v name="$name" -v new="$new" '
            index($0, "<!-- " name ": written") == 1 { while ((getline line < new) > 0) print line; skip = 1 }
            !skip { print }
            index($0, "<!-- " name ": end") == 1 { skip = 0 }' "$OUT" > "$OUT.new"
        mv "$OUT.new" "$OUT"
    else
        { echo; cat "$new"; } >> "$OUT"
    fi
    rm -f "$new"
}

# row FILE LINE FLOOR: one line of a bench's table as a row of ours. A floor is ">=N" or "<=N" of the ratio, or "".
row() {
    awk -v what="$2" -v floor="$3" 'index($0, what) == 1 {
        n = split(substr($0, length(what) + 1), figure, " ")
        held = "–"
        if (floor ~ /^>=/) held = figure[3] >= substr(floor, 3) + 0 ? "held" : "**missed**"
        if (floor ~ /^<=/) held = figure[3] <= substr(floor, 3) + 0 ? "held" : "**missed**"
        sub(/^>=/, "≥ ", floor); sub(/^<=/, "≤ ", floor)
        printf "| %s | %s | %s | %s | %s | %s |\n", what, figure[1], (n > 1 ? figure[2] : "–"), (n > 2 ? figure[3] : "–"), (floor == "" ? "–" : floor), held
    }' "$1"
}

section_repository() {
    "$TOP/tests/testbed/prereqs.sh" bench
    local when figures=$PLACE/figures memory=$PLACE/memory bench
    when=$(stamp)
    say "building the repository's bench"
    (cd "$TOP" && cargo build --quiet --release -p ocopea-repository --example bench)
    bench=${CARGO_TARGET_DIR:-$TOP/target}/release/examples/bench
    say "saves and restores of $MEGABYTES MB, $ROUNDS rounds"
    "$bench" "$PLACE/tree" "$ROUNDS" "${TREE:-$MEGABYTES}" "$SEED" > "$figures" || { cat "$figures" >&2; die "the bench failed"; }
    rm -rf "$PLACE/tree"
    say "one stream of $GIGABYTES GB"
    "$bench" memory "$PLACE/memory-test" "$GIGABYTES" > "$memory" || { cat "$memory" >&2; die "more memory than may be"; }
    put "${AS:-repository}" <<END
## ${AS:-Repository}, beside $(restic version | cut -d' ' -f1,2)

$when
\`ROUNDS=$ROUNDS MEGABYTES=$MEGABYTES SEED=$SEED GIGABYTES=$GIGABYTES tests/bench.sh repository\`: a $(head -1 "$figures"). Saves are measured to the moment the image is visible, every stored byte read back. Restores are compared byte by byte; ours writes files of 1 MiB and more around the page cache. Times in seconds, ratio peer ÷ ours; sizes in MB, ratio ours ÷ peer.

| figure | ours | peer | ratio | floor | |
|---|---|---|---|---|---|
$(row "$figures" "first save, s" ">=3"
row "$figures" "second save (5 %), s" ">=2.5"
row "$figures" "restore, s" ">=2.5"
row "$figures" "first save, CPU s" ""
row "$figures" "second save (5 %), CPU s" ""
row "$figures" "restore, CPU s" ""
row "$figures" "stored, MB" "<=1"
row "$figures" "stored with second, MB" ""
row "$figures" "peak memory, MB" "")

$(awk '/^write|^read/ { n = NF; what = $1; printf "%s: %s MB idle, %s MB at its peak, %s MB beyond (at most 128). ", what " of one stream of '"$GIGABYTES"' GB", $(n-3), $(n-2), $(n-1) }' "$memory")
END
}

section_s3() {
    "$TOP/tests/testbed/prereqs.sh" bench
    local when figures=$PLACE/figures memory=$PLACE/memory bench server=$PLACE/server store
    when=$(stamp)
    say "building the repository's bench"
    (cd "$TOP" && cargo build --quiet --release -p ocopea-repository --example bench)
    bench=${CARGO_TARGET_DIR:-$TOP/target}/release/examples/bench
    "$TOP/tests/testbed/s3.sh" start "$server" > /dev/null
    trap '"$TOP/tests/testbed/s3.sh" stop "$PLACE/server"; rm -rf "$PLACE"' EXIT
    # shellcheck disable=SC1091 # written by the server's start
    . "$server/env"
    export AWS_ACCESS_KEY_ID=$KEY_ID AWS_SECRET_ACCESS_KEY=$SECRET AWS_REGION=$REGION
    "$TOP/tests/testbed/s3.sh" bucket "$server" bench
    store="s3://bench?endpoint=$ENDPOINT"
    say "saves and restores of $MEGABYTES MB in a bucket, a directory and by restic, $ROUNDS rounds"
    "$bench" s3 "$PLACE/tree" "$store" "$ROUNDS" "$MEGABYTES" "$SEED" > "$figures" || { cat "$figures" >&2; die "the bench failed"; }
    rm -rf "$PLACE/tree"
    say "one stream of $GIGABYTES GB"
    OCOPEA_BENCH_STORE=$store "$bench" memory "$PLACE/memory-test" "$GIGABYTES" > "$memory" || { cat "$memory" >&2; die "more memory than may be"; }
    put s3 <<END
## S3, beside the directory and $(restic version | cut -d' ' -f1,2)

$when
\`ROUNDS=$ROUNDS MEGABYTES=$MEGABYTES SEED=$SEED GIGABYTES=$GIGABYTES tests/bench.sh s3\`: a $(head -1 "$figures"); versitygw on loopback, whose processor time is part of it. Saves are measured to the moment the image is visible, every stored byte read back. Times in seconds, ratio peer ÷ bucket.

| figure | bucket | peer | ratio | floor | |
|---|---|---|---|---|---|
$(row "$figures" "first save, s (directory)" ">=0.8"
row "$figures" "second save (5 %), s (directory)" ""
row "$figures" "restore, s (directory)" ">=0.8"
row "$figures" "first save, s (restic)" ">=2"
row "$figures" "second save (5 %), s (restic)" ""
row "$figures" "restore, s (restic)" ">=2"
row "$figures" "peak memory, MB" "")

$(awk '/^write|^read/ { n = NF; what = $1; printf "%s: %s MB idle, %s MB at its peak, %s MB beyond (at most 128). ", what " of one stream of '"$GIGABYTES"' GB", $(n-3), $(n-2), $(n-1) }' "$memory")
END
}

# The data services' bench: built once, whichever of its parts is asked for.
services_bench() {
    say "building the data services' bench"
    (cd "$TOP" && cargo build --quiet --release -p ocopea-agent --example bench)
    bench=${CARGO_TARGET_DIR:-$TOP/target}/release/examples/bench
}

section_postgresql() {
    "$TOP/tests/testbed/prereqs.sh" bench
    local when figures=$PLACE/figures small=$PLACE/small bench
    when=$(stamp)
    services_bench
    say "PostgreSQL, scale $SCALE, $ROUNDS rounds"
    "$bench" postgresql "$SCALE" "$ROUNDS" > "$figures" || { cat "$figures" >&2; die "the bench failed"; }
    "$bench" small "$DATABASES" > "$small" || { cat "$small" >&2; die "the bench failed"; }
    put postgresql <<END
## PostgreSQL, beside $(pg_dump --version)

$when
\`ROUNDS=$ROUNDS SCALE=$SCALE DATABASES=$DATABASES tests/bench.sh postgresql\`: a $(head -1 "$figures"), reached directly. pgbench's rows hold 84 blanks each, which compress to nothing; "of text": the same with text in their place, of which a third remains. A save ends when every stored byte was read back; a load, when every row was counted at the target, and contents were compared there (whole up to 64 MiB, by samples beyond). Ratio peer ÷ ours; memory beyond idle is at most 128 MB.

| figure | ours | peer | ratio | floor | |
|---|---|---|---|---|---|
$(row "$figures" "save, s (pg_dump -Fc)" ">=2"
row "$figures" "load, s (pg_restore -j2)" ">=1"
row "$figures" "save of text, s (pg_dump -Fc)" ">=2"
row "$figures" "load of text, s (pg_restore -j2)" ">=1"
row "$figures" "save, CPU s, server's too" ""
row "$figures" "load, CPU s, server's too" ""
row "$figures" "save of text, CPU s, server's too" ""
row "$figures" "load of text, CPU s, server's too" ""
row "$figures" "memory beyond idle, MB" "")

One server with $(head -1 "$small") of two small tables: $(awk '/^save/ {print $NF}' "$small") s each (at most 0.3).
END
}

section_mongodb() {
    "$TOP/tests/testbed/prereqs.sh" java
    local when figures=$PLACE/figures bench dump=
    when=$(stamp)
    services_bench
    say "MongoDB, $DOCUMENTS MB, $ROUNDS rounds"
    "$bench" mongodb "$DOCUMENTS" "$ROUNDS" "$SEED" > "$figures" || { cat "$figures" >&2; die "the bench failed"; }
    command -v mongodump > /dev/null || dump=" \`mongodump\` is in none of the registries that this machine reaches: not compared."
    put mongodb <<END
## MongoDB, beside a raw read to nowhere

$when
\`ROUNDS=$ROUNDS DOCUMENTS=$DOCUMENTS SEED=$SEED tests/bench.sh mongodb\`: $(head -1 "$figures"), on the testbed's MongoDB-wire server, in memory. The peer reads the same collections by a cursor and keeps nothing: no save can be faster; ours compresses, encrypts, stores and reads back as well. A load makes indexes, and reads and hashes everything at the target; its peer inserts the same documents and looks no further. Ratio ours ÷ peer.$dump

| figure | ours | peer | ratio | floor | |
|---|---|---|---|---|---|
$(row "$figures" "save, s (one collection after another)" "<=1.5"
row "$figures" "save, s (all collections at once)" ""
row "$figures" "load, s (raw inserts)" ""
row "$figures" "save of one collection, s (of four)" ""
row "$figures" "memory beyond idle, MB" "")
END
}

section_fleet() {
    "$TOP/tests/testbed/prereqs.sh" bench tests
    local when figures=$PLACE/figures profile=release made url token pid
    when=$(stamp)
    [ "${PROFILE:-release}" = release ] || profile=debug
    say "building the coordinator and the fleet's bench ($profile)"
    (cd "$TOP" && cargo build --quiet $([ $profile = debug ] || echo --release) -p ocopea-cli --bin ocopea -p ocopea-agent --example fleet)
    made=${CARGO_TARGET_DIR:-$TOP/target}/$profile
    say "starting PostgreSQL, RabbitMQ and an S3 server"
    chmod 711 "$PLACE"
    "$TOP/tests/testbed/postgresql.sh" start "$PLACE/postgresql" >/dev/null
    "$TOP/tests/testbed/rabbitmq.sh" start "$PLACE/rabbitmq" >/dev/null
    "$TOP/tests/testbed/s3.sh" start "$PLACE/s3" >/dev/null; "$TOP/tests/testbed/s3.sh" bucket "$PLACE/s3" bench
    trap '[ -z "${coordinator_pid:-}" ] || kill "$coordinator_pid" 2>/dev/null || true
        "$TOP/tests/testbed/rabbitmq.sh" kill "$PLACE/rabbitmq"; "$TOP/tests/testbed/postgresql.sh" kill "$PLACE/postgresql"
        "$TOP/tests/testbed/s3.sh" stop "$PLACE/s3"; rm -rf "$PLACE"' EXIT
    (
        set -a
        . "$PLACE/postgresql/env"
        OCOPEA_CATALOG="postgres://$USER@127.0.0.1:$PORT/$DATABASE" OCOPEA_CATALOG_PASSWORD_FILE=$PASSWORD_FILE
        . "$PLACE/rabbitmq/env"
        printf %s "$PASSWORD" > "$PLACE/broker-password"
        OCOPEA_BROKER=$URL OCOPEA_BROKER_USER=$USER OCOPEA_BROKER_PASSWORD_FILE=$PLACE/broker-password OCOPEA_BROKER_MANAGEMENT=$MANAGEMENT
        . "$PLACE/s3/env"
        OCOPEA_REPOSITORY="s3://bench/ocopea?endpoint=$ENDPOINT&region=$REGION" AWS_ACCESS_KEY_ID=$KEY_ID AWS_SECRET_ACCESS_KEY=$SECRET
        OCOPEA_REPOSITORY_KEY_FILE=$PLACE/repository.key OCOPEA_INSTALLATION_KEY_FILE=$PLACE/installation.key OCOPEA_LISTEN=127.0.0.1:0
        export -p > "$PLACE/settings"
    )
    (. "$PLACE/settings"; echo $BASHPID > "$PLACE/pid"; exec "$made/ocopea" coordinator > "$PLACE/coordinator.log" 2>&1) &
    until url=$(grep -o 'http://127.0.0.1:[0-9]*/sign-in?code=[a-z0-9_]*' "$PLACE/coordinator.log" | head -1) && [ -n "$url" ]; do
        sleep 0.2; kill -0 $! 2>/dev/null || { cat "$PLACE/coordinator.log" >&2; die "the coordinator did not start"; }
    done
    pid=$(cat "$PLACE/pid"); coordinator_pid=$pid
    XDG_CONFIG_HOME=$PLACE/config "$made/ocopea" sign-in "$url" >/dev/null
    token=$(jq -r .token "$PLACE/config/ocopea/account.json")
    say "$SITES sites join, idle for $IDLE s, and take $TASKS tasks"
    (
        . "$PLACE/rabbitmq/env"
        # A connection has a thread of its own, and each agent two of them.
        ulimit -n "$(ulimit -Hn)"
        BROKER=$URL BROKER_USER=$USER BROKER_PASSWORD=$PASSWORD URL=${url%%/sign-in*} TOKEN=$token COORDINATOR=$pid \
            SITES=$SITES IDLE=$IDLE ROUNDS=$TASKS HINTS=$HINTS TICKS=$(getconf CLK_TCK) "$made/examples/fleet"
    ) > "$figures" || { cat "$figures" >&2; tail -5 "$PLACE/coordinator.log" >&2; die "the bench failed"; }
    cat "$figures" >&2
    put fleet <<END
## Fleet: $SITES sites at one coordinator

$when
\`SITES=$SITES IDLE=$IDLE TASKS=$TASKS HINTS=$HINTS tests/bench.sh fleet\` ($profile build): a coordinator (\`ocopea coordinator\`) on PostgreSQL, RabbitMQ and S3 of this machine; $SITES sites join under an enrolment key, each with an agent (bus, worker, sign-in, polls, reports) in one other process. Idle: the coordinator's own processor time over $IDLE s and its resident memory, beside the most that they may be. Dispatch: $TASKS inspections, one after the other at different sites, from the API's answer until the task runs at the agent, beside one message through a quorum queue (published, confirmed, delivered), measured in turn. Flow: $HINTS hints by the coordinator's bus, beside as many messages by the same library alone with as many under way.

| | Ocopea | beside | ratio | floor | |
|---|---|---|---|---|---|
$(row "$figures" "$SITES idle sites: % of a core" "<=1")
$(row "$figures" "$SITES idle sites: MB resident" "<=1")
$(row "$figures" "accepted to running, ms, median" "")
$(row "$figures" "accepted to running, ms, p99" "<=3")
$(row "$figures" "request sent to running, ms, median" "")
$(row "$figures" "request sent to running, ms, p99" "")
$(row "$figures" "hints a second over 100 queues" ">=0.5")
END
}

section_catalog() {
    "$TOP/tests/testbed/prereqs.sh" bench
    local when figures=$PLACE/figures bench what engine
    when=$(stamp)
    say "building the catalog's bench"
    (cd "$TOP" && cargo build --quiet --release -p ocopea-catalog-db --example bench)
    bench=${CARGO_TARGET_DIR:-$TOP/target}/release/examples/bench
    say "pages of $IMAGES images, $PAGES of each kind"
    "$bench" "$IMAGES" "$PAGES" "$SEED" > "$figures" || { cat "$figures" >&2; die "the bench failed"; }
    put catalog <<END
## Catalog: pages of $IMAGES images

$when
\`IMAGES=$IMAGES PAGES=$PAGES SEED=$SEED tests/bench.sh catalog\`: 100 images a page, as the API asks for them, $PAGES pages of each kind, each time for another application, label, word. The time of the 99th of 100 pages in ms, beside the most that it may be. PostgreSQL $(psql --version | cut -d' ' -f3) on the same machine, with \`pg_trgm\`, after \`ANALYZE\`.

| pages | ms (99 %) | limit | ratio | floor | |
|---|---|---|---|---|---|
$(for engine in PostgreSQL SQLite; do
    sed -n "s/^\($engine: .*\) [0-9.]* [0-9.]* [0-9.]*\$/\1/p" "$figures" | while read -r what; do row "$figures" "$what" "<=1"; done
done)
END
}

SECTIONS=("$@")
[ ${#SECTIONS[@]} -gt 0 ] || mapfile -t SECTIONS < <(compgen -A function section_ | sed 's/^section_//')
for section in "${SECTIONS[@]}"; do
    declare -F "section_$section" > /dev/null || die "there is no section $section"
    "section_$section"
done
say "written to ${OUT#"$TOP"/}"

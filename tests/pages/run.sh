#!/bin/bash
# run.sh [DIRECTORY]: the pages in a real browser, against `ocopea up` with the testbed's clusters and a small application.
# Screenshots come into DIRECTORY (by default .ocopea/pages). PICTURES=yes takes those that docs show, too (needs pngquant).
. "$(dirname "$0")/../testbed/lib.sh"
export KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
"$HERE/prereqs.sh" pages
begin_build --workspace --bins
"$HERE/web.sh"
finish_build
OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
W=$(mktemp -d); export XDG_CONFIG_HOME=$W/config
NAMESPACE=pages-$$ COPY=pages-$$-copy SHOTS=${1:-$TOP/.ocopea/pages}
finish() {
  [ -z "${UP:-}" ] || kill "$UP" 2>/dev/null || true
  for c in a b; do kubectl --context $c delete namespace $NAMESPACE $COPY $COPY-cancelled --ignore-not-found --wait=false >/dev/null 2>&1 || true; done
  [ -z "${UP:-}" ] || wait "$UP" 2>/dev/null || true
  rm -rf "$W"
}
trap finish EXIT
MOVER=$("$HERE/mover-image.sh" | tail -1)
kubectl --context a create namespace $NAMESPACE >/dev/null
sed "s#REGISTRY#$REGISTRY#; s#NAMESPACE#$NAMESPACE#" "$TOP/tests/pages/shop.yaml" | kubectl --context a -n $NAMESPACE apply -f - >/dev/null
say "waiting for the small application"
kubectl --context a -n $NAMESPACE rollout status statefulset/db deployment/web --timeout=180s >/dev/null
"$OCOPEA" up --data "$W/data" --listen 127.0.0.1:0 --mover-image "$MOVER" --site "a=a,registry=http://$REGISTRY/pages" --site "b=b,registry=http://$REGISTRY/pages" >"$W/up.log" 2>&1 &
UP=$!
for i in $(seq 150); do
  grep -q '^Back up' "$W/up.log" && break
  [ "$i" != 150 ] && kill -0 $UP 2>/dev/null || { cat "$W/up.log"; die "ocopea up did not start"; }
  sleep 0.2
done
LINK=$(grep -o 'http://[^ ]*/sign-in?code=[^ ]*' "$W/up.log")
say "clicking through the pages"
LINK=$LINK NAMESPACE=$NAMESPACE COPY=$COPY SHOTS=$SHOTS SEED="$TOP/tests/pages/many.py $W/data/catalog.sqlite 10000" CHROMIUM=$(command -v chromium) node "$TOP/tests/pages/journey.mjs"
if [ -n "${PICTURES:-}" ]; then
  mkdir -p "$TOP/docs/pages"
  for picture in "$SHOTS"/*-light-1440.png; do
    # It shows where this machine keeps things.
    case $picture in */repositories-*) continue ;; esac
    pngquant --force --speed 1 --strip 32 --output "$TOP/docs/pages/$(basename "${picture%-light-1440.png}").png" "$picture"
  done
fi

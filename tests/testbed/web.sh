#!/bin/bash
# web.sh: builds the pages (web/) into web/dist, where the coordinator takes them from; nothing where nothing changed.
. "$(dirname "$0")/lib.sh"
alone "$CACHE/web.lock" "$@"
cd "$TOP/web"
mapfile -t sources < <(find src public index.html package.json package-lock.json tsconfig.json vite.config.ts finish.mjs ../docs/openapi.json -type f ! -name openapi.ts | sort)
key=$(hash_of "${sources[@]}")
if [ "$(cat node_modules/.built 2>/dev/null)" = "$key" ] && [ -s dist/index.html ]; then exit 0; fi
"$HERE/prereqs.sh" web
if [ ! -e node_modules/.installed ] || [ "$(cat node_modules/.installed)" != "$(hash_of package-lock.json)" ]; then
  say "installing what the pages are built with"
  npm ci --no-audit --no-fund --loglevel=error
  hash_of package-lock.json >node_modules/.installed
fi
say "building the pages"
npm run --silent build || die "the pages could not be built (see above)"
echo "$key" >node_modules/.built

// What follows Vite: compressed forms beside each file, the budget, and only then the place that the coordinator serves.
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

// Compressed script that the first page loads, in bytes. It only ever gets smaller without a reason.
const BUDGET = 350_000

const packed = (bytes) => brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } })
const html = readFileSync('build/index.html', 'utf8')
if (/<script(?![^>]*\bsrc=)|<style|\son[a-z]+=|style="/.test(html)) throw new Error('index.html has inline script or style: the policy would refuse it')
if (!html.includes('NONCE-OF-THE-ANSWER')) throw new Error('index.html has no place for the nonce')
// What the page names, and what those import without being asked.
const first = new Set()
const follow = (name) => {
  if (first.has(name)) return
  first.add(name)
  const text = readFileSync(`build/assets/${name}`, 'utf8')
  for (const [, next] of text.matchAll(/(?:from|import)\s*"\.\/([^"]+\.js)"/g)) follow(next)
}
for (const [, name] of html.matchAll(/\/assets\/([^"]+\.js)"/g)) follow(name)
let script = 0
for (const name of readdirSync('build/assets')) {
  const bytes = readFileSync(`build/assets/${name}`)
  const small = packed(bytes)
  writeFileSync(`build/assets/${name}.br`, small)
  writeFileSync(`build/assets/${name}.gz`, gzipSync(bytes, { level: 9 }))
  if (first.has(name)) script += small.length
}
console.log(`script of the first page: ${script} of ${BUDGET} bytes, compressed`)
if (script === 0 || script > BUDGET) throw new Error(`the first page loads ${script} bytes of script, ${BUDGET} are allowed`)
mkdirSync('dist', { recursive: true })
for (const old of readdirSync('dist')) if (old !== '.gitignore') rmSync(`dist/${old}`, { recursive: true })
cpSync('build', 'dist', { recursive: true })
rmSync('build', { recursive: true })

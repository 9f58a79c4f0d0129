// Numbers and times as people read them.
const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
export function bytes(count: number | null | undefined): string {
  if (count == null) return '–'
  let value = count
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) { value /= 1000; unit += 1 }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`
}
export const number = (count: number) => count.toLocaleString('en-GB').replaceAll(',', ' ')
/** A unit as streams name it (`files`), for as many as there are. */
export const counted = (count: number, unit: string) => `${number(count)} ${count === 1 ? unit.replace(/s$/, '') : unit}`
export const plural = (count: number, one: string, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`

export function span(ms: number): string {
  const s = Math.max(0, ms) / 1000
  if (s < 10) return `${s.toFixed(1)} s`
  if (s < 90) return `${Math.round(s)} s`
  const m = Math.round(s / 60)
  if (m < 90) return `${m} min`
  const h = Math.round(m / 60)
  return h < 48 ? `${h} h` : `${Math.round(h / 24)} d`
}
export function ago(at: string | null | undefined, now = Date.now()): string {
  if (!at) return 'never'
  const ms = now - Date.parse(at)
  return ms < 5000 ? 'just now' : `${span(ms)} ago`
}
export const moment = (at: string) => new Date(at).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })
/** The same text with digests as long as people compare them. */
export const shortened = (text: string) => text.replaceAll(/sha256:([0-9a-f]{12})[0-9a-f]{52}/g, 'sha256:$1…')
export const short = (digest: string) => digest.replace(/^sha256:/, '').slice(0, 12)
/** Only what a browser may open: anything else stays text. */
export const safeUrl = (url: string | null | undefined) => (url && /^https?:\/\//i.test(url) ? url : undefined)

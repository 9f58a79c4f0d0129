// What this browser remembers between visits; without a place to keep it, nothing is lost but the comfort.
export function recall(name: string): string | null {
  try { return localStorage.getItem(`ocopea.${name}`) } catch { return null }
}
export function keep(name: string, value: string) {
  try { localStorage.setItem(`ocopea.${name}`, value) } catch { /* kept nowhere */ }
}

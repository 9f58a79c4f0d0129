// What this browser remembers between visits; without a place to keep it, nothing is lost but the comfort.
export function recall(name: string): string | null {
  try { return localStorage.getItem(`ocopea.${name}`) } catch { return null }
}
export function keep(name: string, value: string) {
  try { localStorage.setItem(`ocopea.${name}`, value) } catch { /* kept nowhere */ }
}

/** What was begun in this tab, and not sent yet. */
export function draft<T extends object>(name: string, empty: T): T {
  try { return { ...empty, ...(JSON.parse(sessionStorage.getItem(`ocopea.${name}`) ?? '{}') as Partial<T>) } } catch { return empty }
}
export function keepDraft(name: string, value: object | null) {
  try { if (value) sessionStorage.setItem(`ocopea.${name}`, JSON.stringify(value)); else sessionStorage.removeItem(`ocopea.${name}`) } catch { /* kept nowhere */ }
}

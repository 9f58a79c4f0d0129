// One operation, live. The server sends the whole of it on every change and at once to whoever comes back: there is
// nothing to catch up with, and a lost connection costs no more than the time until the next.
import { useQuery, useQueryClient } from '@tanstack/react-query'
import { useEffect, useRef, useState } from 'react'
import { client, data, type Operation } from './api'
import { as, type Progress } from './records'

export function useOperation(id: string) {
  const queries = useQueryClient()
  const key = ['operation', id]
  const [lost, setLost] = useState(false)
  const found = useQuery({
    queryKey: key,
    queryFn: ({ signal }) => data(client.GET('/api/v1/operations/{id}', { params: { path: { id } }, signal })),
    refetchOnWindowFocus: true,
    staleTime: 1000,
  })
  const over = found.data?.ended != null
  const there = found.data !== undefined
  useEffect(() => {
    if (!there || over) return
    let source: EventSource | undefined
    let timer: ReturnType<typeof setTimeout> | undefined
    let wait = 1000
    const open = () => {
      source = new EventSource(`/api/v1/operations/${encodeURIComponent(id)}/events`)
      source.addEventListener('operation', (event: MessageEvent<string>) => {
        wait = 1000
        setLost(false)
        const now = JSON.parse(event.data) as Operation
        queries.setQueryData<Operation>(key, (old) => (old && old.version > now.version ? old : now))
        if (now.ended) {
          source?.close()
          for (const list of ['operations', 'images', 'environments', 'applications']) void queries.invalidateQueries({ queryKey: [list] })
        }
      })
      source.onerror = () => {
        setLost(true)
        // A browser comes back by itself while it is only the connection; a refusal is final to it, not to us.
        if (source?.readyState === EventSource.CLOSED) {
          timer = setTimeout(() => { void queries.invalidateQueries({ queryKey: key }); open() }, wait)
          wait = Math.min(wait * 2, 15000)
        }
      }
    }
    open()
    return () => { source?.close(); clearTimeout(timer) }
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [id, over, there])
  return { ...found, lost: lost && !over }
}

/** Bytes per second of each running task, over the last seconds. */
export function useRates(operation: Operation | undefined): Map<string, number> {
  const seen = useRef(new Map<string, { at: number; bytes: number }[]>())
  const rates = new Map<string, number>()
  for (const task of operation?.tasks ?? []) {
    const progress = as<Progress>(task.progress)
    if (task.ended || !progress) continue
    const now = performance.now()
    const list = (seen.current.get(task.id) ?? []).filter((one) => now - one.at < 5000 && one.bytes <= progress.bytes)
    if (list.at(-1)?.bytes !== progress.bytes) list.push({ at: now, bytes: progress.bytes })
    seen.current.set(task.id, list.slice(-40))
    const first = list[0]
    if (first && now - first.at > 400) rates.set(task.id, ((progress.bytes - first.bytes) / (now - first.at)) * 1000)
  }
  return rates
}

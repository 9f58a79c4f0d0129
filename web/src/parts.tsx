// Parts that pages share: their frame, states, lists, and how things are written.
import { Alert, Button, CopyButton, Skeleton } from '@mantine/core'
import { useVirtualizer } from '@tanstack/react-virtual'
import { type ReactNode, useEffect, useRef } from 'react'
import { problemOf } from './api'
import { ago, moment } from './format'

export function Page({ title, over, actions, children }: { title: string; over?: ReactNode; actions?: ReactNode; children: ReactNode }) {
  useEffect(() => { document.title = `${title} · Ocopea` }, [title])
  return (
    <div className="page">
      {over && <div className="over">{over}</div>}
      <div className="head"><h1>{title}</h1><span className="grow" />{actions}</div>
      {children}
    </div>
  )
}

export function Section({ title, aside, children }: { title: string; aside?: ReactNode; children: ReactNode }) {
  return <section className="section" aria-label={title}><div className="section-head"><h2>{title}</h2><span className="grow" />{aside}</div>{children}</section>
}

export function Trouble({ error, again }: { error: unknown; again?: () => void }) {
  const problem = problemOf(error)
  return (
    <Alert color="red" variant="outline" title={problem.detail} role="alert" className="trouble">
      {problem.next && <p>Next: {problem.next}</p>}
      {again && <Button size="xs" variant="default" onClick={again}>Try again</Button>}
    </Alert>
  )
}

export const Waiting = ({ lines = 6 }: { lines?: number }) => (
  <div role="status" aria-label="Loading" className="waiting">{Array.from({ length: lines }, (_, i) => <Skeleton key={i} height={18} mb={12} width={`${95 - ((i * 17) % 40)}%`} />)}</div>
)

export const Empty = ({ title, children }: { title: string; children?: ReactNode }) => <div className="empty"><strong>{title}</strong>{children && <div>{children}</div>}</div>

const TONES: Record<string, string> = {
  claimed: 'busy', succeeded: 'good', compatible: 'good', changes: 'warn', no: 'bad', ready: 'good', running: 'busy', active: 'good', creating: 'busy', removing: 'busy', undoing: 'warn', limited: 'warn', incomplete: 'bad',
  failed: 'bad', unreachable: 'bad', unusable: 'bad', cancelled: 'quiet', unknown: 'quiet', snapshot: 'good', 'crash-consistent': 'quiet', inconsistent: 'warn',
}
/** A state, told by word and by colour. */
export const State = ({ of, tone, title }: { of: string; tone?: string; title?: string }) => <span className={`state ${tone ?? TONES[of] ?? 'quiet'}`} title={title}><i aria-hidden />{of === 'claimed' ? 'running' : of}</span>

/** Of an environment: there, running is how it should be. */
export const Runs = ({ of }: { of: string }) => <State of={of} {...(of === 'running' ? { tone: 'good' } : {})} />

export const Ago = ({ at }: { at: string | null | undefined }) => (at ? <time dateTime={at} title={moment(at)}>{ago(at)}</time> : <span className="dim">never</span>)
export const Labels = ({ of }: { of: Record<string, string> }) => <span className="labels">{Object.entries(of).map(([k, v]) => <span className="label" key={k}>{k}{v && <b>={v}</b>}</span>)}</span>

export function Command({ text, label = 'Copy' }: { text: string; label?: string }) {
  return (
    <div className="command"><code tabIndex={0}>{text}</code>
      <CopyButton value={text}>{({ copied, copy }) => <Button size="compact-xs" variant="default" onClick={copy}>{copied ? 'Copied' : label}</Button>}</CopyButton>
    </div>
  )
}

export const Facts = ({ of }: { of: [string, ReactNode][] }) => <dl className="facts">{of.filter(([, v]) => v != null && v !== '').map(([k, v]) => <div key={k}><dt>{k}</dt><dd>{v}</dd></div>)}</dl>

export interface Column<T> { head: string; cell: (row: T) => ReactNode; className?: string }

/** A list of any length: only the rows that are seen are in the page. */
export function List<T>({ label, rows, columns, id, more }: { label: string; rows: T[]; columns: Column<T>[]; id: (row: T) => string; more?: (() => void) | undefined }) {
  const body = useRef<HTMLDivElement>(null)
  const virtual = useVirtualizer({ count: rows.length, getScrollElement: () => body.current, estimateSize: () => 45, overscan: 12, getItemKey: (i) => { const row = rows[i]; return row ? id(row) : i } })
  const items = virtual.getVirtualItems()
  const last = items.at(-1)?.index ?? 0
  useEffect(() => { if (more && last >= rows.length - 30) more() }, [last, more, rows.length])
  const before = items[0]?.start ?? 0
  const after = items.length ? virtual.getTotalSize() - (items.at(-1)?.end ?? 0) : 0
  return (
    <div className="list" ref={body} tabIndex={0} role="region" aria-label={label}>
      <table aria-rowcount={rows.length}>
        <thead><tr>{columns.map((c) => <th key={c.head} scope="col" className={c.className}>{c.head === 'Actions' ? <span className="hidden">Actions</span> : c.head}</th>)}</tr></thead>
        <tbody>
          {before > 0 && <tr aria-hidden="true"><td colSpan={columns.length} height={before} className="space" /></tr>}
          {items.map((item) => {
            const row = rows[item.index]
            return row && <tr key={item.key} data-index={item.index} ref={virtual.measureElement} aria-rowindex={item.index + 1}>{columns.map((c) => <td key={c.head} className={c.className} {...(c.head === 'Actions' ? {} : { 'data-head': c.head })}>{c.cell(row)}</td>)}</tr>
          })}
          {after > 0 && <tr aria-hidden="true"><td colSpan={columns.length} height={after} className="space" /></tr>}
        </tbody>
      </table>
    </div>
  )
}

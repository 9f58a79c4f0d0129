// One operation as it goes on: its tasks with bytes, rates, attempts and the reasons of those that failed.
import { Alert, Button } from '@mantine/core'
import { useMutation } from '@tanstack/react-query'
import { Link, getRouteApi } from '@tanstack/react-router'
import { useEffect, useState } from 'react'
import { type Operation, type Task, client, data } from '../api'
import { bytes, moment, number, plural, span } from '../format'
import { useOperation, useRates } from '../live'
import { Facts, Page, Section, State, Trouble, Waiting } from '../parts'
import { type Failure, type Progress, type Stream, as } from '../records'

const route = getRouteApi('/operations/$operation')

/** The time, every second while somebody waits. */
function useNow(on: boolean): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => { if (!on) return; const timer = setInterval(() => setNow(Date.now()), 1000); return () => clearInterval(timer) }, [on])
  return now
}

function Told({ failure, label }: { failure: Failure; label: string }) {
  return <Alert color="red" variant="outline" className="trouble" title={label}><p>{failure.what}: {failure.cause}</p>{failure.next && <p>Next: {failure.next}</p>}</Alert>
}

interface Output { component?: { bytes: number; new_bytes: number }; streams?: Stream[]; url?: string | null; notes?: string[]; frozen_ms?: number; notices?: string[] }
/** What a finished task brought: its output is an object of one kind. */
function came(task: Task): string[] {
  const output = as<Output>(Object.values(as<Record<string, unknown>>(task.output) ?? {})[0])
  if (!output || task.state !== 'succeeded') return []
  const items = new Map<string, number>()
  for (const s of output.streams ?? []) items.set(s.unit, (items.get(s.unit) ?? 0) + s.items)
  return [
    ...(output.component ? [`${bytes(output.component.bytes)}, ${bytes(output.component.new_bytes)} new`] : []),
    ...[...items].map(([unit, n]) => `${number(n)} ${unit}`), ...(output.frozen_ms ? [`writes were held for ${span(output.frozen_ms)}`] : []),
    ...(output.url ? [output.url] : []), ...(output.notes ?? []), ...(output.notices ?? []),
  ]
}

function Work({ task, rate }: { task: Task; rate: number | undefined }) {
  const progress = as<Progress>(task.progress)
  const brought = came(task)
  if (brought.length > 0) return <span className="dim">{brought.join(' · ')}</span>
  if (!progress || (!progress.bytes && !progress.items && !progress.phase)) return null
  const whole = Math.max(progress.of_bytes, progress.bytes)
  const left = rate && progress.of_bytes > progress.bytes ? ((progress.of_bytes - progress.bytes) / rate) * 1000 : undefined
  const parts = [
    !task.ended && progress.phase, progress.bytes > 0 && (!task.ended && progress.of_bytes ? `${bytes(progress.bytes)} of about ${bytes(whole)}` : bytes(progress.bytes)),
    progress.items > 0 && plural(progress.items, 'item'), progress.new_bytes > 0 && `${bytes(progress.new_bytes)} new`, rate && rate > 0 && `${bytes(rate)}/s`, left && `${span(left)} left`,
  ].filter(Boolean)
  return <><span className="dim">{parts.join(' · ')}</span>{!task.ended && progress.of_bytes > 0 && <Bar of={progress.bytes / whole} />}</>
}
function Bar({ of }: { of: number }) {
  return <div className="bar" role="progressbar" aria-label="Progress" aria-valuenow={Math.round(of * 100)} aria-valuemin={0} aria-valuemax={100}><div style={{ width: `${of * 100}%` }} /></div>
}

function Tasks({ operation, now }: { operation: Operation; now: number }) {
  const rates = useRates(operation)
  return (
    <table className="stack">
      <thead><tr><th scope="col">Task</th><th scope="col">State</th><th scope="col">Work</th><th scope="col" className="right">Took</th></tr></thead>
      <tbody>{operation.tasks.map((task) => {
        const failure = as<Failure>(task.failure)
        return (
          <tr key={task.id}>
            <td className="name" data-head="Task">{task.label}{task.undo && <span className="dim"> (takes back)</span>}</td>
            <td className="nowrap" data-head="State"><State of={task.state} />{task.attempt > 1 && <div className="dim">attempt {task.attempt} of {task.most_attempts}</div>}</td>
            <td data-head="Work"><div><Work task={task} rate={rates.get(task.id)} />{failure && <div className={task.state === 'succeeded' ? 'dim' : 'bad'}>{task.state === 'succeeded' ? 'an earlier attempt: ' : ''}{failure.what}: {failure.cause}{failure.next && ` (next: ${failure.next})`}</div>}</div></td>
            <td className="right" data-head="Took">{task.started ? span((task.ended ? Date.parse(task.ended) : now) - Date.parse(task.started)) : <span className="dim">waits</span>}</td>
          </tr>
        )
      })}</tbody>
    </table>
  )
}

export function OperationPage() {
  const { operation: id } = route.useParams()
  const found = useOperation(id)
  const operation = found.data
  const over = operation?.ended != null
  const now = useNow(Boolean(operation) && !over)
  const cancel = useMutation({ mutationFn: () => data(client.POST('/api/v1/operations/{id}/cancel', { params: { path: { id } } })) })
  if (found.error && !operation) return <Page title="Operation" over={<Link to="/operations">Operations</Link>}><Trouble error={found.error} again={() => void found.refetch()} /></Page>
  if (!operation) return <Page title="Operation"><Waiting /></Page>
  const failure = as<Failure>(operation.failure)
  const done = operation.tasks.filter((t) => t.state === 'succeeded').length
  const succeeded = operation.state === 'succeeded'
  return (
    <Page title={operation.title} over={<Link to="/operations">Operations</Link>} actions={
      <>
        {!over && operation.state !== 'undoing' && <Button variant="default" loading={cancel.isPending} onClick={() => cancel.mutate()}>Cancel</Button>}
        {succeeded && operation.kind === 'save' && operation.image && <Button component={Link} to="/images/$image" params={{ image: operation.image } as never}>Open the image</Button>}
        {succeeded && operation.kind === 'restore' && operation.environment && <Button component={Link} to="/environments/$environment" params={{ environment: operation.environment } as never}>Open the environment</Button>}
      </>}>
      <div className="brief"><span role="status"><State of={operation.state} /></span><span>{span((operation.ended ? Date.parse(operation.ended) : now) - Date.parse(operation.created))}</span><span>{number(done)} of {plural(operation.tasks.length, 'task')} done</span>{found.lost && <span className="warn" role="status">The connection was lost; what you see may be old. It comes back by itself.</span>}</div>
      {cancel.error && <Trouble error={cancel.error} />}
      {operation.state === 'undoing' && <div className="notice">What was made is being taken back.</div>}
      {failure && <Told failure={failure} label={operation.state === 'cancelled' ? 'It was cancelled; what was made was taken back' : 'It failed'} />}
      <div className="columns">
        <Section title="Tasks"><Tasks operation={operation} now={now} /></Section>
        <Section title="About"><div className="body"><Facts of={[
          ['Kind', operation.kind],
          ['Asked for by', operation.creator],
          ['Began', moment(operation.created)],
          ['Ended', operation.ended ? moment(operation.ended) : ''],
          ['Image', operation.image && !(operation.kind === 'save' && !succeeded) && operation.kind !== 'delete-image' && <Link to="/images/$image" params={{ image: operation.image }} className="mono">{operation.image}</Link>],
          ['Environment', operation.environment && operation.kind === 'restore' && <Link to="/environments/$environment" params={{ environment: operation.environment }} className="mono">{operation.environment}</Link>],
          ['Trace', operation.trace && <span className="mono">{operation.trace}</span>],
          ['Id', <span key="i" className="mono">{operation.id}</span>],
        ]} /></div></Section>
      </div>
    </Page>
  )
}

// One image: what it consists of, what is known of it, where it runs, what people say of it.
import { Button, Modal, TextInput, Textarea } from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, getRouteApi, useNavigate } from '@tanstack/react-router'
import { Suspense, lazy, useState } from 'react'
import { client, data, once } from '../api'
import { bytes, counted, moment, plural, short } from '../format'
import { Ago, Empty, Facts, Page, Runs, Section, State, Trouble, Waiting } from '../parts'
import { type Component, type ImageRecord, as, kindOf } from '../records'

const Graph = lazy(() => import('../graph'))
const route = getRouteApi('/images/$image')

/** Streams added up by what they count. */
function items(component: Component): string {
  const sums = new Map<string, number>()
  for (const s of component.body.data?.streams ?? []) sums.set(s.unit, (sums.get(s.unit) ?? 0) + s.items)
  return [...sums].map(([unit, n]) => counted(n, unit)).join(', ')
}

function What({ component }: { component: Component }) {
  const { config, container, data: service } = component.body
  if (config) return <>{plural(config.objects, 'object')}: <span className="dim">{config.kinds.map((k) => k.split(' ').at(-1)).join(', ')}</span></>
  if (container) return <><span className="mono">{container.found.repository}{container.found.tag && `:${container.found.tag}`}</span> <span className="dim mono">@{short(container.found.digest)}</span></>
  if (!service) return null
  return (
    <>
      <div>{items(component) || 'empty'}{service.version && <span className="dim">, server {service.version}</span>}</div>
      <State of={service.consistency.level} {...(service.consistency.why ? { title: service.consistency.why } : {})} />{service.consistency.why && <span className="dim"> {service.consistency.why}</span>}
      {service.notices.map((notice) => <div key={notice} className="dim">{notice}</div>)}
      {service.streams.length > 1 && <details><summary>{plural(service.streams.length, 'stream')}</summary>{service.streams.map((s) => <div key={s.name} className="dim">{s.name}: {counted(s.items, s.unit)}, {bytes(s.bytes)}</div>)}</details>}
    </>
  )
}

export function ImagePage() {
  const { image: id } = route.useParams()
  const queries = useQueryClient()
  const navigate = useNavigate()
  const key = ['image', id]
  const found = useQuery({ queryKey: key, queryFn: ({ signal }) => data(client.GET('/api/v1/images/{image}', { params: { path: { image: id } }, signal })) })
  const runs = useQuery({ queryKey: ['environments', 'of images'], queryFn: ({ signal }) => data(client.GET('/api/v1/environments', { params: { query: { limit: 1000 } }, signal })), refetchInterval: 15_000 })
  const [removing, remove] = useDisclosure(false)
  const [said, setSaid] = useState('')
  const [label, setLabel] = useState('')
  const again = () => queries.invalidateQueries({ queryKey: key })
  const comment = useMutation({
    mutationFn: (body: string) => data(client.POST('/api/v1/images/{image}/comments', { params: { path: { image: id }, header: once() }, body: { body } })),
    onSuccess: () => { setSaid(''); return again() },
  })
  const change = useMutation({
    mutationFn: (labels: Record<string, string | null>) => data(client.PATCH('/api/v1/images/{image}/labels', { params: { path: { image: id } }, body: { labels } })),
    onSuccess: () => { setLabel(''); void queries.invalidateQueries({ queryKey: ['images'] }); return again() },
  })
  const start = useMutation({
    mutationFn: (what: 'delete' | 'verify') => what === 'delete'
      ? data(client.DELETE('/api/v1/images/{image}', { params: { path: { image: id }, header: once() } }))
      : data(client.POST('/api/v1/repository/verifications', { params: { header: once() }, body: { image: id } })),
    onSuccess: (accepted) => void navigate({ to: '/operations/$operation', params: { operation: accepted.operation } }),
  })
  if (found.error) return <Page title="Image"><Trouble error={found.error} again={() => void found.refetch()} /></Page>
  if (!found.data) return <Page title="Image"><Waiting lines={10} /></Page>
  const image = found.data
  const record = as<ImageRecord>(image.body)
  const where = runs.data?.items.filter((e) => e.image === image.id) ?? []
  return (
    <Page title={image.name} over={<Link to="/images">Images</Link>} actions={
      <>
        <Button variant="default" onClick={() => start.mutate('verify')} loading={start.isPending && start.variables === 'verify'}>Verify</Button>
        <Button variant="default" onClick={remove.open}>Delete</Button>
        <Button component={Link} to="/images/$image/restore" params={{ image: id } as never}>Restore</Button>
      </>}>
      <div className="brief"><span>{image.application} at {image.site}</span><span>saved <Ago at={image.created} /> by {image.creator}</span><span>{bytes(image.bytes)}, {bytes(image.new_bytes)} of it new</span></div>
      {start.error && <Trouble error={start.error} />}
      <div className="columns">
        <div>
          <Section title="Topology">{record ? <Suspense fallback={<div className="graph"><Waiting lines={3} /></div>}><Graph record={record} /></Suspense> : <Empty title="The record of this image can't be read" />}</Section>
          <Section title="Components" aside={<span className="dim">{plural(record?.components.length ?? 0, 'component')}</span>}>
            <table className="stack">
              <thead><tr><th scope="col">Name</th><th scope="col">Kind</th><th scope="col">Content</th><th scope="col" className="right">Size</th><th scope="col" className="right">New</th></tr></thead>
              <tbody>{record?.components.map((c) => (
                <tr key={c.name}><td className="name" data-head="Name">{c.name}</td><td className="nowrap" data-head="Kind">{kindOf(c)}</td><td data-head="Content"><div><What component={c} /></div></td><td className="right" data-head="Size">{bytes(c.bytes)}</td><td className="right" data-head="New">{bytes(c.new_bytes)}</td></tr>
              ))}</tbody>
            </table>
          </Section>
          {record && record.left_out.length > 0 && <Section title="Left out"><div className="body">{record.left_out.map((one) => <div key={one.name} className="notice"><b>{one.name}</b>: {one.what}{one.why && `, ${one.why}`}</div>)}</div></Section>}
          <Section title="Comments">
            <div className="body">
              {image.comment && <div className="comment"><span className="dim">{image.creator}, at the save</span><p>{image.comment}</p></div>}
              {image.comments.map((c) => <div className="comment" key={c.at + c.author}><span className="dim">{c.author}, <Ago at={c.at} /></span><p>{c.body}</p></div>)}
              <form className="form comment" onSubmit={(event) => { event.preventDefault(); if (said.trim()) comment.mutate(said) }}>
                <Textarea label="Add a comment" value={said} onChange={(event) => setSaid(event.currentTarget.value)} autosize minRows={2} maxLength={10000} />
                {comment.error && <Trouble error={comment.error} />}
                <div><Button type="submit" size="xs" variant="default" loading={comment.isPending} disabled={!said.trim()}>Comment</Button></div>
              </form>
            </div>
          </Section>
        </div>
        <div>
          <Section title="Runs now at">
            {runs.error ? <div className="body"><Trouble error={runs.error} again={() => void runs.refetch()} /></div> : where.length === 0 ? <Empty title="Nowhere" /> : (
              <div className="body form">{where.map((e) => <div key={e.id}><Link to="/environments/$environment" params={{ environment: e.id }} className="name">{e.name}</Link> <span className="dim">at {e.site}, by {e.owner}</span><br /><Runs of={e.state} /></div>)}</div>)}
          </Section>
          <Section title="Labels">
            <div className="body form">
              <span className="labels">{Object.entries(image.labels).map(([k, v]) => <span className="label" key={k}>{k}{v && <b>={v}</b>}<button type="button" aria-label={`Take away the label ${k}`} onClick={() => change.mutate({ [k]: null })}>×</button></span>)}</span>
              <form onSubmit={(event) => { event.preventDefault(); const [name = '', ...value] = label.split('='); if (name.trim()) change.mutate({ [name.trim()]: value.join('=').trim() }) }}>
                <TextInput label="Add a label" placeholder="bug=4711" value={label} onChange={(event) => setLabel(event.currentTarget.value)} maxLength={600} rightSectionWidth={58} rightSection={<Button type="submit" size="compact-xs" variant="default" disabled={!label.trim()}>Add</Button>} />
              </form>
              {change.error && <Trouble error={change.error} />}
            </div>
          </Section>
          <Section title="About">
            <div className="body"><Facts of={[
              ['Saved', moment(image.created)],
              ['Repository', image.repository],
              ['Snapshots opened within', record?.instant.skew_us != null ? `${Math.max(1, Math.round(record.instant.skew_us / 1000))} ms` : ''],
              ['Made for', record?.requirements.platforms.join(', ')],
              ['Ran on Kubernetes', record?.requirements.kubernetes],
              ['Restored from', record?.lineage.restored_from && <span className="mono">{short(record.lineage.restored_from)}</span>],
              ['Shares bytes with', record?.lineage.base && <span className="mono">{short(record.lineage.base)}</span>],
              ['Record', <span className="mono" key="r">{image.record}</span>],
              ['Id', <span className="mono" key="i">{image.id}</span>],
            ]} /></div>
          </Section>
        </div>
      </div>
      <Modal opened={removing} onClose={remove.close} title="Delete this image?">
        <div className="form">
          <p><b>{image.name}</b> leaves the catalog at once, and its bytes go with the next collection. {where.length > 0 && `What runs from it (${where.map((e) => e.name).join(', ')}) goes on running.`}</p>
          <div className="acts"><Button variant="default" onClick={remove.close} data-autofocus>Keep it</Button><Button color="red" onClick={() => { remove.close(); start.mutate('delete') }}>Delete the image</Button></div>
        </div>
      </Modal>
    </Page>
  )
}

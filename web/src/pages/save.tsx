// Saving an application: first what a save would find and what it would leave out and why, then its name.
import { Button, Checkbox, Select, Switch, TagsInput, TextInput, Textarea } from '@mantine/core'
import { keepPreviousData, useMutation, useQuery } from '@tanstack/react-query'
import { Link, getRouteApi, useNavigate } from '@tanstack/react-router'
import { useEffect, useRef, useState } from 'react'
import { client, data, ended, once } from '../api'
import { bytes, plural, short } from '../format'
import { draft, keepDraft } from '../kept'
import { Page, Section, State, Trouble, Waiting } from '../parts'
import { type Failure, type Gap, type Inventory, as } from '../records'

const route = getRouteApi('/save/$site/$namespace')
const labelsOf = (tags: string[]) => Object.fromEntries(tags.map((tag) => { const [k = '', ...v] = tag.split('='); return [k.trim(), v.join('=').trim()] }))

export function Save() {
  const { site, namespace } = route.useParams()
  const navigate = useNavigate()
  // What was filled in outlives a reload.
  const kept = `save.${site}/${namespace}`
  const [begun] = useState(() => draft(kept, { without: [] as string[], name: '', labels: [] as string[], comment: '', repository: null as string | null, freeze: false }))
  const [without, setWithout] = useState(begun.without)
  const [name, setName] = useState(begun.name)
  const [labels, setLabels] = useState(begun.labels)
  const [comment, setComment] = useState(begun.comment)
  const [repository, setRepository] = useState(begun.repository)
  const [freeze, setFreeze] = useState(begun.freeze)
  const sent = useRef(false)
  useEffect(() => { if (!sent.current) keepDraft(kept, { without, name, labels, comment, repository, freeze }) }, [kept, without, name, labels, comment, repository, freeze])
  const source = { site, namespace, without: [...without].sort(), freeze }
  const input = { ...source, credentials: [], labels: labelsOf(labels), comment, name: name.trim() || null, repository }
  const repositories = useQuery({ queryKey: ['repositories'], queryFn: ({ signal }) => data(client.GET('/api/v1/repositories', { signal })) })
  const look = useQuery({
    queryKey: ['inspection', source],
    placeholderData: keepPreviousData, staleTime: 30_000, gcTime: 60_000, retry: false, refetchOnWindowFocus: false,
    queryFn: async ({ signal }) => {
      const accepted = await data(client.POST('/api/v1/inspections', { params: { header: once() }, body: { ...source, credentials: [], labels: {}, comment: '' }, signal }))
      const operation = await ended(accepted.operation, signal)
      return { inventory: as<{ Inspected?: Inventory }>(operation.result)?.Inspected, failure: as<Failure>(operation.failure) }
    },
  })
  const save = useMutation({
    mutationFn: () => data(client.POST('/api/v1/saves', { params: { header: once() }, body: input })),
    onSuccess: (accepted) => { sent.current = true; keepDraft(kept, null); void navigate({ to: '/operations/$operation', params: { operation: accepted.operation } }) },
  })
  const inventory = look.data?.inventory
  const leave = (what: string, out: boolean) => setWithout((old) => (out ? [...old, what] : old.filter((one) => one !== what)))
  const gaps: Gap[] = [...(inventory?.gaps ?? []), ...(inventory?.data.flatMap((d) => d.rights) ?? [])].filter((g) => g.blocking || !without.includes(g.name))
  const blocking = gaps.filter((g) => g.blocking && !without.includes(g.name))
  const settled = Boolean(inventory && !look.isPlaceholderData && !look.isFetching)
  return (
    <Page title={`Save ${namespace}`} over={<Link to="/applications">Applications</Link>}>
      <div className="brief"><span>at {site}</span><span>The application goes on running; it is not touched{freeze ? ', but what writes to volumes is held while they are copied' : ''}.</span></div>
      <div className="columns">
        <div>
          {look.error && <Trouble error={look.error} again={() => void look.refetch()} />}
          {look.isPending && <Section title="What is found"><div className="body" role="status"><p className="dim">{site} looks at the application …</p><Waiting lines={8} /></div></Section>}
          {look.data?.failure && <Section title="What is found"><div className="body"><div className="notice bad"><b>{look.data.failure.what}</b>: {look.data.failure.cause}{look.data.failure.next && <p>Next: {look.data.failure.next}</p>}</div>{without.length > 0 && <Button size="xs" variant="default" onClick={() => setWithout([])}>Leave nothing out</Button>}</div></Section>}
          {inventory && (
            <div className={look.isFetching ? 'stale' : ''}>
              {without.length > 0 && <Section title="Left out, because you said so"><div className="body labels">{without.map((one) => <span className="label" key={one}>{one}<button type="button" aria-label={`Take ${one} in again`} onClick={() => leave(one, false)}>×</button></span>)}</div></Section>}
              {gaps.length > 0 && <Section title="What would be missing"><div className="body">
                {gaps.map((g) => <div key={g.name + g.what} className={`notice ${g.blocking ? 'bad' : ''}`}><b>{g.what}</b>: {g.why}{g.next && <p>Next: {g.next}</p>}
                  {g.blocking && <Checkbox mt={6} label={`Leave ${g.name} out`} checked={without.includes(g.name)} onChange={(event) => leave(g.name, event.currentTarget.checked)} />}</div>)}
              </div></Section>}
              <Section title="Data services" aside={<span className="dim">{plural(inventory.data.length, 'data service')}</span>}>
                <table className="stack"><thead><tr><th scope="col">Name</th><th scope="col">Kind</th><th scope="col">A copy of it will be</th><th scope="col" className="right">About</th><th scope="col"><span className="hidden">Actions</span></th></tr></thead>
                  <tbody>{inventory.data.map((d) => <tr key={d.name}><td className="name" data-head="Name">{d.name}</td><td className="nowrap" data-head="Kind">{d.kind} {d.version}</td><td data-head="Copy"><div><State of={d.consistency.level} /> <span className="dim">{d.consistency.why}</span></div></td><td className="right" data-head="About">{bytes(d.bytes)}</td><td><div className="acts"><Button size="compact-xs" variant="default" aria-label={`Leave ${d.name} out`} onClick={() => leave(d.name, true)}>Leave out</Button></div></td></tr>)}
                    {inventory.data.length === 0 && <tr><td colSpan={5} className="dim">none</td></tr>}</tbody></table>
              </Section>
              <Section title="Container images" aside={<span className="dim">by the digest that runs</span>}>
                <table className="stack"><thead><tr><th scope="col">Name</th><th scope="col">Image</th><th scope="col">Used by</th></tr></thead>
                  <tbody>{inventory.containers.map((c) => <tr key={c.name}><td className="name" data-head="Name">{c.name}</td><td className="mono" data-head="Image">{c.repository}{c.tag && `:${c.tag}`} <span className="dim">@{short(c.digest)}</span></td><td data-head="Used by">{c.used_by.map((u) => u.name).join(', ')}</td></tr>)}</tbody></table>
              </Section>
              <Section title="Configuration" aside={<span className="dim">{plural(inventory.objects.length, 'object')}, {bytes(inventory.config_bytes)}</span>}>
                <div className="body dim">{inventory.objects.map((o) => `${o.kind.toLowerCase()}/${o.name}`).join(', ')}</div>
              </Section>
            </div>
          )}
        </div>
        <Section title="Image">
          <form className="body form" onSubmit={(event) => { event.preventDefault(); save.mutate() }}>
            <TextInput label="Name" placeholder={`${namespace} and the time`} value={name} maxLength={200} onChange={(event) => setName(event.currentTarget.value)} />
            <TagsInput label="Labels" placeholder="bug=4711, then Enter" value={labels} onChange={setLabels} maxTags={64} clearable clearButtonProps={{ 'aria-label': 'Take all labels away' }} />
            <Textarea label="Comment" value={comment} maxLength={10000} autosize minRows={2} onChange={(event) => setComment(event.currentTarget.value)} />
            {(repositories.data?.length ?? 0) > 1 && <Select label="Repository" placeholder="the default one" clearable clearButtonProps={{ 'aria-label': 'The default repository' }} data={repositories.data?.map((r) => r.name) ?? []} value={repository} onChange={setRepository} />}
            <Switch label="Hold writes while data is copied" description="A better copy; the application waits." checked={freeze} onChange={(event) => setFreeze(event.currentTarget.checked)} />
            {save.error && <Trouble error={save.error} />}
            {blocking.length > 0 && <p className="warn">{plural(blocking.length, 'thing')} can't be saved: leave it out, or mend it first.</p>}
            <Button type="submit" loading={save.isPending} disabled={!settled || blocking.length > 0}>Save</Button>
          </form>
        </Section>
      </div>
    </Page>
  )
}

// One environment: its URL, its logs as they come, saving and removing it.
import { Button, Modal, Select } from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { useMutation, useQuery } from '@tanstack/react-query'
import { Link, getRouteApi, useNavigate } from '@tanstack/react-router'
import { useEffect, useRef, useState } from 'react'
import { Refused, client, data, once } from '../api'
import { moment, safeUrl } from '../format'
import { Ago, Command, Facts, Page, Runs, Section, Trouble, Waiting } from '../parts'
import { type ImageRecord, as } from '../records'

const route = getRouteApi('/environments/$environment')
// A page that stands open for days keeps no more than this.
const MOST = 400_000

function Logs({ environment, components }: { environment: string; components: string[] }) {
  const [text, setText] = useState('')
  const [asked, setAsked] = useState({ component: '', round: 0 })
  const [state, setState] = useState<'opening' | 'open' | 'ended'>('opening')
  const [error, setError] = useState<unknown>()
  const box = useRef<HTMLPreElement>(null)
  const stick = useRef(true)
  useEffect(() => {
    const stop = new AbortController()
    setText(''); setError(undefined); setState('opening')
    void (async () => {
      try {
        const stream = await data(client.GET('/api/v1/environments/{environment}/logs', { params: { path: { environment }, query: { follow: true, ...(asked.component ? { component: asked.component } : {}) } }, parseAs: 'stream', signal: stop.signal }))
        const reader = (stream as unknown as ReadableStream<Uint8Array>).getReader()
        const decoder = new TextDecoder()
        setState('open')
        let waiting = ''
        let timer: ReturnType<typeof setTimeout> | undefined
        // Many lines at once are shown at once, a few times a second.
        const flush = () => { timer = undefined; const more = waiting; waiting = ''; setText((old) => (old + more).slice(-MOST)) }
        for (;;) {
          const { done, value } = await reader.read()
          if (done) break
          waiting = (waiting + decoder.decode(value, { stream: true })).slice(-MOST)
          timer ??= setTimeout(flush, 150)
        }
        clearTimeout(timer); flush()
        if (!stop.signal.aborted) setState('ended')
      } catch (cause) {
        if (!stop.signal.aborted) { setError(cause instanceof Refused ? cause : new Error('the connection ended')); setState('ended') }
      }
    })()
    return () => stop.abort()
  }, [environment, asked])
  useEffect(() => { const at = box.current; if (at && stick.current) at.scrollTop = at.scrollHeight }, [text])
  return (
    <Section title="Logs" aside={
      <>
        {state === 'ended' && <Button size="xs" variant="default" onClick={() => setAsked((old) => ({ ...old, round: old.round + 1 }))}>Follow again</Button>}
        {components.length > 1 && <Select size="xs" aria-label="Only of this component" placeholder="all components" clearable clearButtonProps={{ 'aria-label': 'All components' }} data={components} value={asked.component || null} onChange={(one) => setAsked((old) => ({ component: one ?? '', round: old.round + 1 }))} />}
      </>}>
      {error !== undefined && <div className="body"><Trouble error={error} /></div>}
      <pre className="logs" ref={box} tabIndex={0} role="log" aria-label="Log lines" aria-live="off" onScroll={(event) => { const at = event.currentTarget; stick.current = at.scrollHeight - at.scrollTop - at.clientHeight < 40 }}>{text || (state === 'opening' ? 'asking the site …' : state === 'open' ? 'nothing was logged yet' : 'no lines')}</pre>
    </Section>
  )
}

export function EnvironmentPage() {
  const { environment: id } = route.useParams()
  const navigate = useNavigate()
  const [asking, ask] = useDisclosure(false)
  const found = useQuery({ queryKey: ['environment', id], queryFn: ({ signal }) => data(client.GET('/api/v1/environments/{environment}', { params: { path: { environment: id } }, signal })), refetchInterval: (query) => (query.state.error ? false : 5000) })
  const image = useQuery({ queryKey: ['image', found.data?.image], enabled: Boolean(found.data), retry: false, queryFn: ({ signal }) => data(client.GET('/api/v1/images/{image}', { params: { path: { image: found.data?.image ?? '' } }, signal })) })
  const remove = useMutation({
    mutationFn: () => data(client.DELETE('/api/v1/environments/{environment}', { params: { path: { environment: id }, header: once() } })),
    onSuccess: (accepted) => void navigate({ to: '/operations/$operation', params: { operation: accepted.operation } }),
  })
  if (found.error) return <Page title="Environment" over={<Link to="/environments">Environments</Link>}><Trouble error={found.error} again={() => void found.refetch()} /></Page>
  if (!found.data) return <Page title="Environment"><Waiting /></Page>
  const one = found.data
  const url = safeUrl(one.url)
  const parts = as<ImageRecord>(image.data?.body)?.components ?? []
  const workloads = [...new Set(parts.flatMap((c) => c.body.container?.found.used_by.map((by) => by.name) ?? []))].sort()
  const services = parts.flatMap((c) => (c.body.data && c.body.data.found.kind !== 'volume' ? [c.name] : []))
  return (
    <Page title={one.name} over={<Link to="/environments">Environments</Link>} actions={
      <>
        <Button variant="default" onClick={ask.open} disabled={one.state === 'removing'}>Remove</Button>
        <Button variant="default" component={Link} to="/save/$site/$namespace" params={{ site: one.site, namespace: one.name } as never}>Save</Button>
        {url && <Button component="a" href={url} target="_blank" rel="noreferrer noopener">Open</Button>}
      </>}>
      <div className="brief"><Runs of={one.state} /><span>at {one.site}</span><span>made <Ago at={one.created} /> by {one.owner}</span></div>
      {remove.error && <Trouble error={remove.error} />}
      <div className="columns">
        <div><Logs environment={id} components={workloads} /></div>
        <div>
          <Section title="About"><div className="body"><Facts of={[
            ['From image', <Link key="i" to="/images/$image" params={{ image: one.image }}>{image.data?.name ?? one.image}</Link>],
            ['URL', url ? <a key="u" href={url} target="_blank" rel="noreferrer noopener">{one.url}</a> : <span key="u" className="dim">none was found; see below</span>],
            ['Made', moment(one.created)],
            ['Id', <span key="d" className="mono">{one.id}</span>],
          ]} /></div></Section>
          <Section title="From your shell"><div className="body">
            <p className="dim">A port on your machine, with a ready connection string:</p>
            {(services.length ? services : ['SERVICE']).map((s) => <Command key={s} text={`ocopea connect ${one.name} ${s}`} />)}
            <p className="dim">A program in a container:</p>
            {(workloads.length ? workloads : ['COMPONENT']).map((w) => <Command key={w} text={`ocopea exec ${one.name} ${w} -- sh`} />)}
          </div></Section>
        </div>
      </div>
      <Modal opened={asking} onClose={ask.close} title={`Remove ${one.name}?`}>
        <div className="form">
          <p>Everything that was made for it at {one.site} is removed, its data included. The image that it came from stays. Save it first if its state matters.</p>
          <div className="acts"><Button variant="default" onClick={ask.close} data-autofocus>Keep it</Button><Button color="red" onClick={() => { ask.close(); remove.mutate() }}>Remove the environment</Button></div>
        </div>
      </Modal>
    </Page>
  )
}

// What somebody should look at, what is under way, and messages that nobody could read.
import { useQuery } from '@tanstack/react-query'
import { client, data } from '../api'
import { bytes, number } from '../format'
import { Ago, Empty, Facts, Page, Section, Trouble, Waiting } from '../parts'

export function StatusPage() {
  const found = useQuery({ queryKey: ['status'], queryFn: ({ signal }) => data(client.GET('/api/v1/status', { signal })), refetchInterval: 5000 })
  const kept = found.data?.quarantined
  const quarantine = useQuery({ queryKey: ['quarantine', kept], enabled: Boolean(kept), queryFn: ({ signal }) => data(client.GET('/api/v1/quarantine', { signal })) })
  const status = found.data
  return (
    <Page title="Status">
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {status && (
        <>
          <Section title="To look at">{status.worries.length === 0 ? <Empty title="Nothing: all is well" /> : <div className="body">{status.worries.map((w) => <div key={w.what} className="notice bad"><b>{w.what}</b>{w.next && <p>Next: {w.next}</p>}</div>)}</div>}</Section>
          <div className="cards">
            <Section title="Under way"><div className="body">{status.operations.length + status.tasks.length === 0 ? <span className="dim">Nothing</span> : <Facts of={[...status.operations.map((o): [string, string] => [`${o.of}, ${o.state}`, number(o.number)]), ...status.tasks.map((t): [string, string] => [`tasks at ${t.of}, ${t.state}`, number(t.number)])]} />}</div></Section>
            <Section title="Upkeep of the repository"><div className="body"><Facts of={status.upkeep.map((u) => [u.kind === 'verify' ? 'Verified' : u.kind === 'collect' ? 'Collected' : u.kind, <span key={u.kind}><Ago at={u.last} />{u.failed_since > 0 && <span className="bad">, failed {u.failed_since} times since</span>}</span>])} /></div></Section>
            <Section title="This program"><div className="body"><Facts of={[['Version', status.version], ['Leads', status.leads ? 'yes' : 'no, another one does'], ['Messages', status.bus ?? 'go out and come in']]} /></div></Section>
          </div>
          {quarantine.error && <Trouble error={quarantine.error} />}
          {quarantine.data && quarantine.data.items.length > 0 && (
            <Section title="Quarantine" aside={<span className="dim">{number(quarantine.data.messages)} messages that nobody could read</span>}>
              <table className="stack"><thead><tr><th scope="col">Why</th><th scope="col">Sent to</th><th scope="col">Site</th><th scope="col" className="right">Size</th><th scope="col">Since</th></tr></thead>
                <tbody>{quarantine.data.items.map((m, i) => <tr key={i}><td data-head="Why">{m.reason}</td><td className="mono" data-head="Sent to">{m.routing_key}</td><td data-head="Site">{m.site ?? ''}</td><td className="right" data-head="Size">{bytes(m.bytes)}</td><td className="nowrap" data-head="Since"><Ago at={m.since} /></td></tr>)}</tbody></table>
            </Section>
          )}
        </>
      )}
    </Page>
  )
}

// Restoring on one page: where, as what, with which versions, and below it what exactly will happen. The plan is the
// site's own, made anew for each choice; its digest is what "Restore exactly this" approves.
import { Button, TextInput } from '@mantine/core'
import { useDebouncedValue } from '@mantine/hooks'
import { keepPreviousData, useMutation, useQuery } from '@tanstack/react-query'
import { Link, getRouteApi, useNavigate } from '@tanstack/react-router'
import { useEffect, useState } from 'react'
import { type Verdict, client, data, ended, once } from '../api'
import { bytes, short, shortened } from '../format'
import { keep, recall } from '../kept'
import { Ago, Empty, Page, Section, State, Trouble, Waiting } from '../parts'
import { type Failure, type ImageRecord, type Plan, as } from '../records'
import type { RestoreChoices } from '../router'

const route = getRouteApi('/images/$image/restore')
const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/

/** `shop-copy`, or the first with a number behind it that nobody has. */
function free(application: string, taken: Set<string>): string {
  const stem = `${application.toLowerCase().replaceAll(/[^a-z0-9-]+/g, '-').replace(/^-+/, '').slice(0, 48) || 'application'}-copy`
  if (!taken.has(stem)) return stem
  for (let n = 2; ; n += 1) if (!taken.has(`${stem}-${n}`)) return `${stem}-${n}`
}

/** A site with its verdict, and every reason that it is no better. */
function Choice({ of, chosen, choose }: { of: Verdict; chosen: boolean; choose: () => void }) {
  return (
    <label className="choice">
      <input type="radio" name="site" value={of.site} checked={chosen} disabled={of.verdict === 'no'} onChange={choose} />
      <span><b>{of.site}</b> <State of={of.verdict} /></span>
      <span className="why">
        {of.reasons.map((r) => <span key={r.what + r.needed} className="reason"><b>{r.what}</b>: needs {r.needed}; found: {r.found}.{r.mend && <> <i>{r.mend}</i></>}</span>)}
        {of.reported ? <>looked at <Ago at={of.reported} /></> : 'never looked at'}
      </span>
    </label>
  )
}

export function Restore() {
  const { image: id } = route.useParams()
  const choices = route.useSearch()
  const change = route.useNavigate()
  const navigate = useNavigate()
  const image = useQuery({ queryKey: ['image', id], queryFn: ({ signal }) => data(client.GET('/api/v1/images/{image}', { params: { path: { image: id } }, signal })) })
  const sites = useQuery({ queryKey: ['verdicts', id], queryFn: ({ signal }) => data(client.GET('/api/v1/images/{image}/sites', { params: { path: { image: id } }, signal })), refetchInterval: 15_000 })
  const runs = useQuery({ queryKey: ['environments', 'names'], queryFn: ({ signal }) => data(client.GET('/api/v1/environments', { params: { query: { limit: 1000 } }, signal })), staleTime: 0 })
  const applications = useQuery({ queryKey: ['applications'], queryFn: ({ signal }) => data(client.GET('/api/v1/applications', { signal })) })
  const [draft, setDraft] = useState<{ name?: string; set: Record<string, string> }>({ set: choices.set ?? {}, ...(choices.name ? { name: choices.name } : {}) })
  const settled = runs.data && applications.data
  // What nobody chose is chosen: the site of last time or one that is ready, a name that is free.
  const [suggested, setSuggested] = useState<string>()
  useEffect(() => {
    if (suggested || !settled || !image.data) return
    setSuggested(free(image.data.application, new Set([...(runs.data?.items.map((e) => e.name) ?? []), ...(applications.data?.map((a) => a.application) ?? [])])))
  }, [suggested, settled, image.data, runs.data, applications.data])
  const offered = sites.data?.filter((s) => s.verdict === 'compatible' || s.verdict === 'changes') ?? []
  const others = sites.data?.filter((s) => !offered.includes(s)) ?? []
  // Where it is not known, the plan finds out: it may be asked for, and is nobody's suggestion while another is offered.
  const usable = offered.length ? offered : others.filter((s) => s.verdict === 'unknown')
  const site = choices.site ?? (usable.find((s) => s.site === recall('site')) ?? usable.find((s) => s.site !== image.data?.site) ?? usable[0])?.site
  const name = draft.name ?? suggested
  const set = Object.fromEntries(Object.entries(draft.set).filter(([, v]) => v.trim()))
  const wanted = { site, name, set }
  const [asked] = useDebouncedValue(wanted, 350)
  const chosen = (next: Partial<RestoreChoices>) => void change({ search: (old) => ({ ...old, ...next }), replace: true })
  const valid = name !== undefined && NAME.test(name)
  const plan = useQuery({
    queryKey: ['plan', id, asked],
    enabled: Boolean(asked.site && asked.name && NAME.test(asked.name)),
    placeholderData: keepPreviousData,
    staleTime: 60_000, gcTime: 60_000, retry: false, refetchOnWindowFocus: false,
    queryFn: async ({ signal }) => {
      const accepted = await data(client.POST('/api/v1/restores', { params: { header: once() }, body: { image: id, site: asked.site ?? '', name: asked.name ?? '', versions: asked.set, dry_run: true }, signal }))
      const operation = await ended(accepted.operation, signal)
      return { plan: as<Plan>(operation.result), failure: as<Failure>(operation.failure) }
    },
  })
  const current = plan.data && !plan.isPlaceholderData && !plan.isFetching && JSON.stringify(asked) === JSON.stringify(wanted)
  const made = plan.data?.plan?.digest ? plan.data.plan : undefined
  const ready = Boolean(current && made && made.refusals.length === 0 && valid)
  const restore = useMutation({
    mutationFn: (approve: string) => data(client.POST('/api/v1/restores', { params: { header: once() }, body: { image: id, site: asked.site ?? '', name: asked.name ?? '', versions: asked.set, approve, dry_run: false } })),
    onSuccess: (accepted) => { if (asked.site) keep('site', asked.site); void navigate({ to: '/operations/$operation', params: { operation: accepted.operation } }) },
  })
  const trouble = image.error ?? sites.error ?? runs.error ?? applications.error
  if (trouble) return <Page title="Restore"><Trouble error={trouble} again={() => { for (const one of [image, sites, runs, applications]) if (one.error) void one.refetch() }} /></Page>
  if (!image.data || !sites.data) return <Page title="Restore"><Waiting lines={10} /></Page>
  const containers = (as<ImageRecord>(image.data.body)?.components ?? []).flatMap((c) => (c.body.container ? [c.body.container.found] : []))
  return (
    <Page title={`Restore ${image.data.name}`} over={<><Link to="/images">Images</Link> / <Link to="/images/$image" params={{ image: id }}>{image.data.name}</Link></>}>
      <div className="brief"><span>{image.data.application}, saved <Ago at={image.data.created} /> at {image.data.site}</span><span>{bytes(image.data.bytes)}</span></div>
      <div className="columns left">
        <div>
          <Section title="Site">
            <div className="body sites" role="radiogroup" aria-label="Site">
              {sites.data.length === 0 && <Empty title="There is no site"><Link to="/sites">Let one join</Link></Empty>}
              {offered.map((one) => <Choice key={one.id} of={one} chosen={one.site === site} choose={() => chosen({ site: one.site })} />)}
              {others.length > 0 && (
                <details open={offered.length === 0 || others.some((one) => one.site === site)}>
                  <summary>{others.length === 1 ? '1 site' : `${others.length} sites`} {offered.length ? 'more' : ''} where it can't run, or nobody knows</summary>
                  {others.map((one) => <Choice key={one.id} of={one} chosen={one.site === site} choose={() => chosen({ site: one.site })} />)}
                </details>
              )}
            </div>
          </Section>
          <Section title="Name">
            <div className="body"><TextInput label="Environment and namespace" value={name ?? ''} maxLength={63} error={name !== undefined && !valid && 'Lower-case letters, digits and "-", at most 63'} onChange={(event) => { const value = event.currentTarget.value; setDraft((d) => ({ ...d, name: value })); chosen({ name: value }) }} /></div>
          </Section>
          <Section title="Versions">
            <div className="body form">
              {containers.length === 0 && <span className="dim">This image has no container images.</span>}
              {containers.map((c) => (
                <TextInput key={c.name} label={c.name} description={`saved: ${c.tag ?? ''} @${short(c.digest)}`} placeholder="as saved" maxLength={200} value={draft.set[c.name] ?? ''}
                  onChange={(event) => { const value = event.currentTarget.value; const next = { ...draft.set, [c.name]: value }; setDraft((d) => ({ ...d, set: next })); const given = Object.fromEntries(Object.entries(next).filter(([, v]) => v.trim())); void change({ search: ({ set: _, ...old }) => (Object.keys(given).length ? { ...old, set: given } : old), replace: true }) }} />
              ))}
            </div>
          </Section>
        </div>
        <Section title="Plan" aside={<span className="dim" role="status">{plan.isFetching || !current ? (plan.error ? '' : 'The site plans …') : made ? `made by ${asked.site}, nothing was changed` : ''}</span>}>
          {plan.error && !plan.isFetching && <div className="body"><Trouble error={plan.error} again={() => void plan.refetch()} /></div>}
          {!plan.error && !plan.data && <div className="body"><Waiting lines={8} /></div>}
          {plan.data && !plan.error && (
            <div className={current ? '' : 'stale'}>
              {plan.data.failure && <div className="body"><div className="notice bad"><b>{plan.data.failure.what}</b>: {plan.data.failure.cause}{plan.data.failure.next && <p>Next: {plan.data.failure.next}</p>}</div></div>}
              {made && (made.refusals.length > 0 || made.notices.length > 0) && <div className="body">
                {made.refusals.map((r) => <div className="notice bad" key={r.what + r.needed}><b>{r.what}</b> can't be restored there: needs {r.needed}, found {r.found}.{r.next && <p>Next: {r.next}</p>}</div>)}
                {made.notices.map((n) => <div className="notice" key={n}>{n}</div>)}
              </div>}
              {made && <table className="plan"><tbody>{made.steps.map((s, i) => <tr key={i}><td className={`act ${s.action}`}>{s.action}</td><td><b>{s.what}</b>{s.detail && <div className="dim" title={s.detail}>{shortened(s.detail)}</div>}{s.why && <div className="dim">{s.why}</div>}</td></tr>)}</tbody></table>}
            </div>
          )}
          {restore.error && <div className="body"><Trouble error={restore.error} /></div>}
          <div className="dock">
            <Button disabled={!ready} loading={restore.isPending} onClick={() => made && restore.mutate(made.digest)}>Restore exactly this</Button>
            <span className="dim">{made && current ? (made.refusals.length ? 'The site refuses this plan.' : <>plan <span className="mono">{short(made.digest)}</span></>) : ''}</span>
          </div>
        </Section>
      </div>
    </Page>
  )
}

// What stands around every page: who is signed in, the way to the others. Who isn't gets the way to sign in, and then
// the page that was meant: the address stays as it is.
import { ActionIcon, AppShell, Burger, Button, Menu, NavLink, useComputedColorScheme, useMantineColorScheme } from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, Outlet, useRouter, useRouterState } from '@tanstack/react-router'
import { useEffect } from 'react'
import { Refused, client, data } from './api'
import { Page, Trouble, Waiting } from './parts'
import { SignIn } from './pages/sign-in'

const PLACES = [
  ['/applications', 'Applications'], ['/images', 'Images'], ['/environments', 'Environments'], ['/operations', 'Operations'],
  ['/sites', 'Sites'], ['/repositories', 'Repositories'], ['/status', 'Status'],
] as const

export function Shell() {
  const path = useRouterState({ select: (s) => s.location.pathname })
  const search = useRouterState({ select: (s) => s.location.search as { code?: string } })
  const code = path === '/sign-in' ? search.code : undefined
  const me = useQuery({ queryKey: ['me'], queryFn: ({ signal }) => data(client.GET('/api/v1/me', { signal })), staleTime: 60_000 })
  const out = me.error instanceof Refused && me.error.problem.status === 401
  if (out || code) return <SignIn {...(code ? { code } : {})} present={me.data?.user} />
  if (me.error) return <main className="alone"><Trouble error={me.error} again={() => void me.refetch()} /></main>
  if (!me.data) return <main className="alone"><Waiting lines={3} /></main>
  return <Inside user={me.data.user} role={me.data.role} path={path} />
}

function Inside({ user, role, path }: { user: string; role: string; path: string }) {
  const [open, { toggle, close }] = useDisclosure(false)
  const queries = useQueryClient()
  const router = useRouter()
  useEffect(() => { if (path === '/sign-in') void router.navigate({ to: '/applications', replace: true }) }, [path, router])
  // Rights that ended while a page stood open are told by any request.
  useEffect(() => queries.getQueryCache().subscribe((event) => {
    const error = event.query.state.error
    if (event.type === 'updated' && event.query.queryKey[0] !== 'me' && error instanceof Refused && error.problem.status === 401) void queries.invalidateQueries({ queryKey: ['me'] })
  }), [queries])
  const places = role === 'administrator' ? PLACES : PLACES.filter(([to]) => to !== '/status')
  const signOut = async () => {
    await client.DELETE('/api/v1/session', { params: { header: { 'ocopea-page': '1' } } }).catch(() => undefined)
    queries.clear()
    location.assign('/applications')
  }
  return (
    <AppShell header={{ height: 48 }} navbar={{ width: 200, breakpoint: 'sm', collapsed: { mobile: !open } }} padding={0}>
      <a className="skip" href="#main">Skip to the page</a>
      <AppShell.Header className="top">
        <Burger opened={open} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Menu" />
        <Link to="/applications" className="brand"><img src="/favicon.svg" alt="" width="20" height="20" />Ocopea</Link>
        <span className="grow" />
        <Scheme />
        <Menu position="bottom-end">
          <Menu.Target><Button variant="subtle" color="gray" size="compact-sm" className="plain">{user}</Button></Menu.Target>
          <Menu.Dropdown>
            <Menu.Label>{user}, {role}</Menu.Label>
            <Menu.Item onClick={() => void signOut()}>Sign out</Menu.Item>
          </Menu.Dropdown>
        </Menu>
      </AppShell.Header>
      <AppShell.Navbar p="xs" aria-label="Places">
        {places.map(([to, label]) => (
          <NavLink key={to} component={Link} to={to} label={label} active={path === to || path.startsWith(`${to}/`) || (to === '/applications' && path.startsWith('/save/'))} onClick={close} variant="light" className="place" />
        ))}
      </AppShell.Navbar>
      <AppShell.Main id="main" tabIndex={-1}><Outlet /></AppShell.Main>
    </AppShell>
  )
}

function Scheme() {
  const { setColorScheme } = useMantineColorScheme()
  const dark = useComputedColorScheme('light') === 'dark'
  return (
    <ActionIcon variant="subtle" color="gray" className="plain" onClick={() => setColorScheme(dark ? 'light' : 'dark')} aria-label={dark ? 'Light colours' : 'Dark colours'}>
      <span aria-hidden>{dark ? '☀' : '☾'}</span>
    </ActionIcon>
  )
}

/** A fault of a page is said, and the others go on working. */
export function Broken({ error, reset }: { error: unknown; reset: () => void }) {
  return <Page title="This page has a fault"><p>{String(error)}</p><p><Button variant="default" onClick={reset}>Try again</Button></p></Page>
}

export function NotThere() {
  return <Page title="There is nothing here"><p>The address may be mistyped, or what it named is gone. <Link to="/images">See the images</Link>.</p></Page>
}

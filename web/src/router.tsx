// Every page has an address of its own, and what is chosen on it stands in the address, too.
import type { QueryClient } from '@tanstack/react-query'
import { createRootRouteWithContext, createRoute, createRouter, lazyRouteComponent, redirect } from '@tanstack/react-router'
import { Applications } from './pages/applications'
import { Images } from './pages/images'
import { Broken, NotThere, Shell } from './shell'

export interface ImageFilters { q?: string; label?: string; application?: string; site?: string; by?: string; repository?: string }
export interface RestoreChoices { site?: string; name?: string; set?: Record<string, string> }

const text = (value: unknown) => (typeof value === 'string' || typeof value === 'number' ? String(value).slice(0, 300) : undefined)
const some = <T extends object>(choices: T) => Object.fromEntries(Object.entries(choices).filter(([, v]) => v !== undefined && v !== '')) as T

const root = createRootRouteWithContext<{ queries: QueryClient }>()({ component: Shell, notFoundComponent: NotThere })
const home = createRoute({ getParentRoute: () => root, path: '/', beforeLoad: () => { throw redirect({ to: '/applications' }) } })
const applications = createRoute({ getParentRoute: () => root, path: '/applications', component: Applications })
const images = createRoute({
  getParentRoute: () => root, path: '/images', component: Images,
  validateSearch: (s: Record<string, unknown>): ImageFilters => some({ q: text(s['q']), label: text(s['label']), application: text(s['application']), site: text(s['site']), by: text(s['by']), repository: text(s['repository']) }) as ImageFilters,
})
const image = createRoute({ getParentRoute: () => root, path: '/images/$image', component: lazyRouteComponent(() => import('./pages/image'), 'ImagePage') })
const restore = createRoute({
  getParentRoute: () => root, path: '/images/$image/restore', component: lazyRouteComponent(() => import('./pages/restore'), 'Restore'),
  validateSearch: (s: Record<string, unknown>): RestoreChoices => {
    const given = typeof s['set'] === 'object' && s['set'] !== null ? Object.entries(s['set'] as Record<string, unknown>) : []
    const set = Object.fromEntries(given.flatMap(([k, v]) => { const t = text(v); return t ? [[k, t]] : [] }))
    return some({ site: text(s['site']), name: text(s['name']), set: given.length ? set : undefined }) as RestoreChoices
  },
})
const save = createRoute({ getParentRoute: () => root, path: '/save/$site/$namespace', component: lazyRouteComponent(() => import('./pages/save'), 'Save') })
const environments = createRoute({ getParentRoute: () => root, path: '/environments', component: lazyRouteComponent(() => import('./pages/environments'), 'Environments') })
const environment = createRoute({ getParentRoute: () => root, path: '/environments/$environment', component: lazyRouteComponent(() => import('./pages/environment'), 'EnvironmentPage') })
const operations = createRoute({ getParentRoute: () => root, path: '/operations', validateSearch: (s: Record<string, unknown>): { all?: boolean } => (s['all'] === true ? { all: true } : {}), component: lazyRouteComponent(() => import('./pages/operations'), 'Operations') })
const operation = createRoute({ getParentRoute: () => root, path: '/operations/$operation', component: lazyRouteComponent(() => import('./pages/operation'), 'OperationPage') })
const sites = createRoute({ getParentRoute: () => root, path: '/sites', component: lazyRouteComponent(() => import('./pages/sites'), 'Sites') })
const repositories = createRoute({ getParentRoute: () => root, path: '/repositories', component: lazyRouteComponent(() => import('./pages/repositories'), 'Repositories') })
const status = createRoute({ getParentRoute: () => root, path: '/status', component: lazyRouteComponent(() => import('./pages/status'), 'StatusPage') })
const signIn = createRoute({ getParentRoute: () => root, path: '/sign-in', validateSearch: (s: Record<string, unknown>): { code?: string } => some({ code: text(s['code']) }) as { code?: string } })

const tree = root.addChildren([home, applications, images, image, restore, save, environments, environment, operations, operation, sites, repositories, status, signIn])
export const makeRouter = (queries: QueryClient) => createRouter({ routeTree: tree, context: { queries }, defaultErrorComponent: Broken, defaultPreload: 'intent', defaultPreloadStaleTime: 0, scrollRestoration: true })
declare module '@tanstack/react-router' {
  interface Register { router: ReturnType<typeof makeRouter> }
}

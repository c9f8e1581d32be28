"""The two Lua scripts that change the rollout: the only writers of the registry's pointer.

They run atomically on the server. Versions travel and are stored as strings, and are turned into
numbers for comparisons only: Lua would write a large one as 1e+15. Both answer
`{outcome, stable, candidate, newest, epoch, versions kept}`.
"""

from __future__ import annotations

# A client sends a script again when the connection died before the answer: the receipt in the
# audit trail shows that the first one was carried out.
_COMMON = """
local rollout_key, versions_key, events_key, quarantine_key, epoch_key =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, channel, receipt, max_events = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local RECEIPTS = 64

local function blob_key(version) return prefix .. 'w:' .. version end
local function training_key(version) return prefix .. 't:' .. version end
local function record_key(version) return prefix .. 'm:' .. version end

local fields = redis.call('HMGET', rollout_key, 'stable', 'candidate', 'canary', 'newest')
local now = {
  stable = fields[1] or '0', candidate = fields[2] or '0',
  canary = fields[3] or '[]', newest = fields[4] or '0'
}
local newest_epoch = redis.call('GET', epoch_key) or '0'

local function answer(outcome)
  local kept = redis.call('ZRANGE', versions_key, 0, -1)
  return {outcome, now.stable, now.candidate, now.newest, newest_epoch, kept}
end

local function carried_out_before()
  for _, entry in ipairs(redis.call('XREVRANGE', events_key, '+', '-', 'COUNT', RECEIPTS)) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'receipt' and entry[2][i + 1] == receipt then return true end
    end
  end
  return false
end

local function set_state(version, state)
  if redis.call('EXISTS', record_key(version)) == 1 then
    redis.call('HSET', record_key(version), 'state', state)
  end
end

local function state_of(kept) return redis.call('HGET', record_key(kept), 'state') end

local function fetchable(kept)
  return state_of(kept) and redis.call('EXISTS', blob_key(kept)) == 1
end

-- What is run in a version's place when it is revoked.
local function newest_proven_below(limit)
  for _, kept in ipairs(redis.call('ZREVRANGE', versions_key, 0, -1)) do
    if tonumber(kept) < limit and state_of(kept) == 'stable' and fetchable(kept) then return kept end
  end
  return '0'
end

-- A candidate is always newer than the stable version: one that is overtaken waits no longer.
local function make_stable(version)
  if now.candidate ~= '0' and tonumber(now.candidate) <= tonumber(version) then
    set_state(now.candidate, 'candidate')
    now.candidate, now.canary = '0', '[]'
  end
  set_state(version, 'stable')
  now.stable = version
end

-- The pointer moves last: what can fail comes before it.
local function commit(event, version, by, reason, sha256)
  redis.call('XADD', events_key, 'MAXLEN', '~', max_events, '*', 'event', event, 'version', version,
    'by', by, 'reason', reason, 'sha256', sha256, 'receipt', receipt)
  redis.call('HSET', rollout_key, 'stable', now.stable, 'candidate', now.candidate,
    'canary', now.canary, 'newest', now.newest)
  redis.call('PUBLISH', channel, redis.call('HINCRBY', rollout_key, 'serial', 1))
  return answer('done')
end
"""

# Staged bytes are renamed, not copied: the script takes the same time for any size.
PUBLISH = (
    _COMMON
    + """
local acknowledgements_key, staged_key, staged_training_key = KEYS[6], KEYS[7], KEYS[8]
local version, epoch, state, by = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local manifest, digest, sha256, seal = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local keep = tonumber(ARGV[13])
local with_training = seal ~= ''

local function refusal()
  if tonumber(version) <= tonumber(now.newest) or tonumber(epoch) < tonumber(newest_epoch) then
    return 'stale'
  end
  if redis.call('ZSCORE', quarantine_key, sha256) then return 'quarantined' end
  if state == 'candidate' and now.candidate ~= '0' then return 'pending' end
  local staged = redis.call('EXISTS', staged_key) == 1
  if with_training then staged = staged and redis.call('EXISTS', staged_training_key) == 1 end
  if not staged then return 'expired' end
end

-- A candidate is the newest version there is, so it is never among the old ones.
local function trim()
  local resort = newest_proven_below(tonumber(now.stable))
  for _, old in ipairs(redis.call('ZRANGE', versions_key, 0, -(keep + 1))) do
    if old ~= now.stable and old ~= resort then
      redis.call('UNLINK', blob_key(old), training_key(old), record_key(old))
      redis.call('ZREM', versions_key, old)
    end
  end
end

-- Those that are gone: the hash stays small.
local function forget_replicas()
  local seen = redis.call('HGETALL', acknowledgements_key)
  for i = 1, #seen, 2 do
    if redis.call('EXISTS', prefix .. 'alive:' .. seen[i]) == 0 then
      redis.call('HDEL', acknowledgements_key, seen[i])
    end
  end
end

if carried_out_before() then
  redis.call('UNLINK', staged_key, staged_training_key)
  return answer('done')
end
local refused = refusal()
if refused then
  redis.call('UNLINK', staged_key, staged_training_key)
  return answer(refused)
end

redis.call('HSET', record_key(version), 'manifest', manifest, 'digest', digest, 'sha256', sha256,
  'seal', seal, 'state', state)
redis.call('RENAME', staged_key, blob_key(version))
redis.call('PERSIST', blob_key(version))
if with_training then
  redis.call('RENAME', staged_training_key, training_key(version))
  redis.call('PERSIST', training_key(version))
end
redis.call('ZADD', versions_key, version, version)
if state == 'stable' then
  make_stable(version)
else
  now.candidate = version
end
now.newest = version
trim()
forget_replicas()
redis.call('SET', epoch_key, epoch)
newest_epoch = epoch
return commit('published', version, by, '', sha256)
"""
)

# A version can be revoked on a server whose memory is full: the flag is for that.
DECIDE = (
    "#!lua flags=allow-oom"
    + _COMMON
    + """
local kind, version, canary, by, reason = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local max_quarantined = tonumber(ARGV[10])
local number, stable = tonumber(version), tonumber(now.stable)

local state = state_of(version)

-- Versions above this one that replicas could still be told to run, newest first.
local function later_versions()
  local later = {}
  for _, kept in ipairs(redis.call('ZREVRANGE', versions_key, 0, -1)) do
    if tonumber(kept) > number and state_of(kept) ~= 'revoked' then later[#later + 1] = kept end
  end
  return later
end

local function holds()
  if kind == 'canary' then return version == now.candidate and canary == now.canary end
  if kind == 'promote' then return version == now.stable and number > 0 end
  if kind == 'revoke' then return state == 'revoked' end
  return version == now.stable and #later_versions() == 0
end

local function refusal()
  if number == 0 then
    if kind == 'rollback' then return nil end
    return 'base'
  end
  if kind == 'revoke' then
    if state or version == now.stable or version == now.candidate then return nil end
    return 'missing'
  end
  if state == 'revoked' then return 'revoked' end
  if not fetchable(version) then return 'missing' end
  if kind == 'canary' and version ~= now.candidate then return 'not the candidate' end
  if kind == 'promote' and number < stable then return 'older' end
  if kind == 'rollback' and number == stable then return 'stable already' end
  if kind == 'rollback' and number > stable then return 'newer' end
end

local function withdraw(bad)
  set_state(bad, 'revoked')
  local sha256 = redis.call('HGET', record_key(bad), 'sha256')
  if sha256 then
    -- Scores are the order of arrival: the bound drops the oldest.
    local last = redis.call('ZRANGE', quarantine_key, -1, -1, 'WITHSCORES')
    redis.call('ZADD', quarantine_key, (tonumber(last[2]) or 0) + 1, sha256)
    redis.call('ZREMRANGEBYRANK', quarantine_key, 0, -(max_quarantined + 1))
  end
  if bad == now.candidate then now.candidate, now.canary = '0', '[]' end
end

if holds() or carried_out_before() then return answer('done') end
local refused = refusal()
if refused then return answer(refused) end

if kind == 'canary' then
  set_state(version, 'canary')
  now.canary = canary
elseif kind == 'promote' then
  make_stable(version)
elseif kind == 'revoke' then
  withdraw(version)
  if version == now.stable then now.stable = newest_proven_below(number) end
else
  for _, later in ipairs(later_versions()) do withdraw(later) end
  make_stable(version)
end
return commit(kind, version, by, reason, redis.call('HGET', record_key(version), 'sha256') or '')
"""
)

// An operator as it is written with controller-runtime, and informers as they are written with client-go, for the tests of
// Sampan's Kubernetes API: a leader-elected manager owns a Deployment and a ConfigMap for each Boat, keeps the Boat's status
// and finalizer, and a shared informer factory counts what it sees. Built-in kinds travel in protobuf, as is the default.
// One line of JSON is printed for each thing that happened.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const finalizer = "judge.sampan.dev/finalizer"

var groupVersion = schema.GroupVersion{Group: "judge.sampan.dev", Version: "v1"}

type BoatSpec struct {
	Rowers int32 `json:"rowers"`
}

type BoatStatus struct {
	Rowing             int32              `json:"rowing,omitempty"`
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

type Boat struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              BoatSpec   `json:"spec,omitempty"`
	Status            BoatStatus `json:"status,omitempty"`
}

type BoatList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Boat `json:"items"`
}

func (b *Boat) DeepCopyObject() runtime.Object {
	made := *b
	b.ObjectMeta.DeepCopyInto(&made.ObjectMeta)
	made.Status.Conditions = append([]metav1.Condition(nil), b.Status.Conditions...)
	return &made
}

func (l *BoatList) DeepCopyObject() runtime.Object {
	made := *l
	made.Items = make([]Boat, len(l.Items))
	for i := range l.Items {
		made.Items[i] = *l.Items[i].DeepCopyObject().(*Boat)
	}
	return &made
}

var printing sync.Mutex

func tell(what string, facts map[string]any) {
	printing.Lock()
	defer printing.Unlock()
	if facts == nil {
		facts = map[string]any{}
	}
	facts["what"] = what
	line, _ := json.Marshal(facts)
	fmt.Println(string(line))
}

type reconciler struct {
	client.Client
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var boat Boat
	if err := r.Get(ctx, request.NamespacedName, &boat); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !boat.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(&boat, finalizer) {
			tell("farewell", map[string]any{"name": boat.Name})
			return ctrl.Result{}, r.Update(ctx, &boat)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&boat, finalizer) {
		if err := r.Update(ctx, &boat); err != nil {
			return ctrl.Result{}, err
		}
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: boat.Name, Namespace: boat.Namespace}}
	outcome, err := controllerutil.CreateOrUpdate(ctx, r.Client, deployment, func() error {
		selector := map[string]string{"boat": boat.Name}
		deployment.Spec.Replicas = &boat.Spec.Rowers
		if deployment.Spec.Selector == nil {
			deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: selector}
		}
		deployment.Spec.Template.Labels = selector
		if len(deployment.Spec.Template.Spec.Containers) == 0 {
			deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "rower", Image: "registry.k8s.io/pause"}}
		}
		return controllerutil.SetControllerReference(&boat, deployment, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	if outcome != controllerutil.OperationResultNone {
		tell("deployment", map[string]any{"outcome": string(outcome), "replicas": *deployment.Spec.Replicas})
	}
	made := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: boat.Name, Namespace: boat.Namespace},
		Data:       map[string]string{"rowers": fmt.Sprint(boat.Spec.Rowers)},
	}
	if err := controllerutil.SetControllerReference(&boat, made, r.Scheme()); err != nil {
		return ctrl.Result{}, err
	}
	if err := r.Patch(ctx, made, client.Apply, client.FieldOwner("judge"), client.ForceOwnership); err != nil {
		return ctrl.Result{}, err
	}
	before := boat.DeepCopyObject().(*Boat)
	boat.Status.Rowing = deployment.Status.ReadyReplicas
	boat.Status.ObservedGeneration = boat.Generation
	meta.SetStatusCondition(&boat.Status.Conditions, metav1.Condition{
		Type: "Manned", Status: metav1.ConditionTrue, Reason: "Reconciled", ObservedGeneration: boat.Generation,
	})
	return ctrl.Result{}, r.Status().Patch(ctx, &boat, client.MergeFrom(before))
}

func (r *reconciler) fromNode(ctx context.Context, _ client.Object) []ctrl.Request {
	var boats BoatList
	if err := r.List(ctx, &boats); err != nil {
		return nil
	}
	requests := make([]ctrl.Request, 0, len(boats.Items))
	for i := range boats.Items {
		requests = append(requests, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&boats.Items[i])})
	}
	return requests
}

func watchWithInformers(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 30*time.Second, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps()
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { tell("informer", map[string]any{"event": "add", "name": o.(*corev1.ConfigMap).Name}) },
		UpdateFunc: func(old, o any) {
			if old.(*corev1.ConfigMap).ResourceVersion != o.(*corev1.ConfigMap).ResourceVersion {
				tell("informer", map[string]any{"event": "update", "name": o.(*corev1.ConfigMap).Name, "rowers": o.(*corev1.ConfigMap).Data["rowers"]})
			}
		},
		DeleteFunc: func(o any) {
			if gone, ok := o.(*corev1.ConfigMap); ok {
				tell("informer", map[string]any{"event": "delete", "name": gone.Name})
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		tell("synced", map[string]any{"kind": kind.String(), "synced": synced})
	}
	found, err := informer.Lister().ConfigMaps(namespace).List(labels.Everything())
	if err != nil {
		return err
	}
	tell("listed", map[string]any{"count": len(found)})
	return nil
}

func errorsAreTyped(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	_, err := clients.CoreV1().ConfigMaps(namespace).Get(ctx, "nowhere", metav1.GetOptions{})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "twice"}, Data: map[string][]byte{"a": {0, 255}}}
	made, createErr := clients.CoreV1().Secrets(namespace).Create(ctx, secret, metav1.CreateOptions{})
	if createErr != nil {
		return createErr
	}
	_, again := clients.CoreV1().Secrets(namespace).Create(ctx, secret, metav1.CreateOptions{})
	defer clients.CoreV1().Secrets(namespace).Delete(ctx, "twice", metav1.DeleteOptions{})
	made.ResourceVersion = "1"
	made.Data["a"] = []byte{1}
	_, stale := clients.CoreV1().Secrets(namespace).Update(ctx, made, metav1.UpdateOptions{})
	bad := secret.DeepCopy()
	bad.Name = "Not_A_Name"
	_, invalid := clients.CoreV1().Secrets(namespace).Create(ctx, bad, metav1.CreateOptions{})
	tell("errors", map[string]any{
		"notFound": apierrors.IsNotFound(err), "alreadyExists": apierrors.IsAlreadyExists(again),
		"conflict": apierrors.IsConflict(stale), "invalid": apierrors.IsInvalid(invalid),
	})
	return nil
}

func run(namespace string) error {
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	scheme.AddKnownTypes(groupVersion, &Boat{}, &BoatList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	config := ctrl.GetConfigOrDie()
	ctx := ctrl.SetupSignalHandler()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := errorsAreTyped(ctx, clients, namespace); err != nil {
		return err
	}
	if err := watchWithInformers(ctx, clients, namespace); err != nil {
		return err
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		LeaderElection:                true,
		LeaderElectionID:              "judge.sampan.dev",
		LeaderElectionNamespace:       namespace,
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       server.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	operator := &reconciler{manager.GetClient()}
	err = ctrl.NewControllerManagedBy(manager).
		For(&Boat{}).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.ConfigMap{}).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(operator.fromNode)).
		Complete(operator)
	if err != nil {
		return err
	}
	go func() {
		<-manager.Elected()
		tell("elected", nil)
	}()
	return manager.Start(ctx)
}

func main() {
	if err := run(os.Args[1]); err != nil {
		log.Log.Error(err, "the judge ends")
		os.Exit(1)
	}
	tell("stopped", nil)
}
